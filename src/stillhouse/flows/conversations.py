"""What a chat template and a model can't do with a run's rows, found before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import DataError, UsageError
from stillhouse.data.chat import ASSISTANT, Conversation, answer_turn, turns_of
from stillhouse.data.shown import conversation, named, shown, turn_end
from stillhouse.data.sources import Pool, Splits
from stillhouse.data.written import Kind
from stillhouse.models.reader import ends_of

OTHER = " 3f9a"  # words that no row has


@dataclass(frozen=True)
class Sample:
    """A conversation that stands for all with the same roles and members of turns."""

    said: Conversation
    answer: str | None
    place: str

    @property
    def whole(self) -> Conversation:
        return self.said if self.answer is None else self.said.answered(self.answer)


@dataclass(frozen=True)
class Forms:
    """What a run's rows look like: whether there are plain texts, and a conversation of each
    form."""

    plain: bool
    samples: list[Sample]


def forms_of(splits: Splits, kind: Kind) -> Forms:
    """Raises DataError for conversations that no encoder-decoder reads."""
    plain, found = False, {}
    for pool in (splits.labelled, splits.unlabelled, splits.held_out, splits.reported):
        for row, answer, said in _conversations(pool):
            if said is None:
                plain = True
                continue
            if kind == "seq2seq":
                raise DataError(
                    f"{pool.place(row)}: conversations are for language models: take "
                    "--task causal_lm"
                )
            form = (_form(said), answer if answer is None else tuple(answer_turn(answer)))
            if form not in found:
                found[form] = Sample(said, answer, pool.place(row))
    return Forms(plain, [*found.values()])


def _conversations(pool: Pool) -> Iterator[tuple[int, str | None, Conversation | None]]:
    answers = pool.labels
    for row, example in enumerate(pool):
        yield row, answers[row], turns_of(example.text)


def _form(said: Conversation) -> tuple[object, ...]:
    return (bool(said.tools), *((turn["role"], *turn) for turn in said.turns))


def check_rows(
    forms: Forms, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> list[str]:
    """Notes of what the chat template leaves out. Raises UsageError where the model would not stop
    after what it learns, DataError for a conversation that the template can't show."""
    if forms.plain:
        _check_end_of_text(tokenizer, model)
    for sample in forms.samples:
        with named(lambda sample=sample: sample.place):
            conversation(sample.said, sample.answer, tokenizer)
            _check_calls(sample.whole, tokenizer)
    answered = next((sample for sample in forms.samples if sample.answer), None)
    if answered is not None:
        _check_end_of_turn(answered.said, tokenizer, model)
    return [*_unseen(forms.samples, tokenizer)]


def _check_end_of_text(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    if tokenizer.eos_token_id not in (ends := ends_of(model)):
        raise UsageError(
            f"the tokenizer ends a text with id {tokenizer.eos_token_id}, the model with "
            f"{_listed(ends)}: it would never stop writing what it learns; "
            "set eos_token_id in its generation_config.json, or the tokenizer's eos_token"
        )


def _listed(ids: tuple[int, ...]) -> str:
    return " or ".join(map(str, ids)) or "none"


def _check_end_of_turn(said: Conversation, tokenizer: Any, model: PreTrainedModel) -> None:
    """Raises UsageError where what the template writes after an answer holds no end token."""
    end, ends = turn_end(said, tokenizer), ends_of(model)
    ids: list[int] = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    if set(ids) & set(ends):
        return
    known = [i for i in ids if i in tokenizer.added_tokens_decoder] or ids[: len(ids) == 1]
    if known:
        remedy = f"add id {known[0]} to eos_token_id in its generation_config.json"
    else:
        remedy = "let the template end the assistant's turns with {{ eos_token }}"
        if word := end.strip():
            remedy += f", or make {word!r} a token of the tokenizer and one of eos_token_id"
    raise UsageError(
        f"the chat template ends an answer with {end!r}, which has none of the model's end tokens "
        f"(id {_listed(ends)}): it would never stop writing what it learns; {remedy}"
    )


def _check_calls(said: Conversation, tokenizer: Any) -> None:
    """Raises DataError where the template shows nothing of a call of a tool."""
    for place, turn in enumerate(said.turns):
        if turn["role"] == ASSISTANT and turn.get("tool_calls"):
            bare = {name: value for name, value in turn.items() if name != "tool_calls"}
            if not _matters(said, place, bare, tokenizer):
                raise DataError(
                    "the chat template doesn't show calls of tools, so they can't be learnt: take "
                    "a model whose template does, or leave the row out"
                )


def _unseen(samples: list[Sample], tokenizer: Any) -> Iterator[str]:
    """What the template leaves out without saying so: tools, and turns of some role."""
    with_tools = next((sample.whole for sample in samples if sample.said.tools), None)
    if with_tools is not None:
        without = Conversation(with_tools.turns)
        if shown(tokenizer, with_tools) == shown(tokenizer, without):
            yield "the chat template doesn't show tools: the column tools changes nothing"
    roles: dict[str, tuple[Conversation, int]] = {}
    for sample in samples:
        for place, turn in enumerate(sample.whole.turns):
            roles.setdefault(turn["role"], (sample.whole, place))
    for role, (said, place) in roles.items():
        turn = said.turns[place]
        other = {**turn, "content": turn["content"] + OTHER}
        if not turn.get("tool_calls") and not _matters(said, place, other, tokenizer):
            yield f"the chat template doesn't show what is said by {role}"


def _matters(said: Conversation, place: int, other: dict[str, Any], tokenizer: Any) -> bool:
    """Whether the template shows the conversation differently with another turn in a place."""
    turns = (*said.turns[:place], other, *said.turns[place + 1 :])
    return shown(tokenizer, said) != shown(tokenizer, Conversation(turns, said.tools))
