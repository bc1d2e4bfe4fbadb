"""What of an answer is to be scored, made anew for the self-check to compare with."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from stillhouse.data.chat import ASSISTANT, Conversation
from stillhouse.data.shown import shown
from stillhouse.data.written import end_of
from stillhouse.tasks.written import Written


def tokens_of_answer(data: Written, answer: str) -> list[int]:
    """An answer and its end."""
    coded: Any
    if data.pairs:
        coded = data.tokenizer(text_target=answer)
    else:
        coded = data.tokenizer(answer, add_special_tokens=False)
    ids, end = list(coded["input_ids"]), end_of(data.tokenizer)
    return ids if data.pairs and ids[-1:] == [end] else [*ids, end]


def agree(ids: list[int], whole: list[int], *, cut: bool) -> bool:
    """Whether they are the same; of a cut row, whether they begin so."""
    return ids == (whole[: len(ids)] if cut and ids else whole)


def agree_in_words(
    ids: list[int], said: Conversation, tokenizer: PreTrainedTokenizerBase, *, cut: bool
) -> bool:
    """Whether what is scored of a conversation is what its template shows of the assistant's
    turns that are to be learnt, white space aside, which a tokenizer may join with what is around.
    """

    def words(tokens: list[int]) -> str:
        return "".join(str(tokenizer.decode(tokens)).split())

    answers = []
    for i, turn in enumerate(said.turns):
        if turn["role"] == ASSISTANT and turn.get("weight") != 0:
            before = shown(tokenizer, said.until(i), asking=True)
            answers.append(shown(tokenizer, said.until(i + 1))[len(before) :])
    coded: Any = tokenizer("".join(answers), add_special_tokens=False)
    mine, theirs = words(ids), words(coded["input_ids"])
    return mine == theirs or (cut and bool(mine) and mine in theirs)
