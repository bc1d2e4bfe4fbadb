"""What a chat template makes of a conversation: text, tokens, which of them are to be learnt, and
how a turn ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from stillhouse.core.errors import DataError
from stillhouse.data.chat import WEIGHT, Conversation, learnt

Ids = list[int]
# A template is a program: it raises its own errors, and those of the language it is run in.
RAISED = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def shown(tokenizer: Any, said: Conversation, *, asking: bool = False) -> str:
    """A conversation as the template shows it; `asking`: with what comes before an answer. Raises
    DataError without a template, and for what the template refuses."""
    if not said.turns and not asking:
        return ""
    if not tokenizer.chat_template:
        raise DataError(
            "the rows are conversations, and the tokenizer has no chat template: set its "
            "chat_template and save it, or take a model that has one"
        )
    turns = [{k: v for k, v in turn.items() if k != WEIGHT} for turn in said.turns]
    try:
        return tokenizer.apply_chat_template(
            turns, list(said.tools) or None, tokenize=False, add_generation_prompt=asking
        )
    except RAISED as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the chat template can't show this conversation ({words}; its roles: "
            f"{', '.join(turn['role'] for turn in said.turns) or 'none'}): change or leave out the "
            "row, or set another chat_template"
        ) from error


def conversation(said: Conversation, answer: str | None, tokenizer: Any) -> tuple[Ids, Ids, Ids]:
    """Prompt, whole conversation, and 1 at each token of the assistant's that is to be learnt, the
    end of its turn included. Raises DataError as `shown`, and for a template that shows such a
    turn differently once others follow."""
    prompt = shown(tokenizer, said, asking=True)
    whole = said if answer is None else said.answered(answer)
    text = prompt if answer is None else shown(tokenizer, whole)
    spans = []
    for place, turn in enumerate(whole.turns):
        if not learnt(turn):
            continue
        start, stop = spans_of(tokenizer, whole, place)
        if not text.startswith(start) or not text.startswith(stop):
            raise DataError(
                "the chat template shows a turn differently once others follow, so what the "
                'assistant said can\'t be told apart: give the earlier answers "weight": 0, or '
                "single questions and answers"
            )
        spans.append((len(start), len(stop)))
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, scored = coded["input_ids"], []
    for begins, ends in coded["offset_mapping"]:
        scored.append(int(any(a <= begins and ends <= b and begins < b for a, b in spans)))
    return tokenizer(prompt, add_special_tokens=False)["input_ids"], ids, scored


def spans_of(tokenizer: Any, said: Conversation, place: int) -> tuple[str, str]:
    """The conversation up to where an answer begins, and up to its end."""
    before = shown(tokenizer, said.until(place), asking=True)
    return before, shown(tokenizer, said.until(place + 1))


def answer_text(said: Conversation, answer: str, tokenizer: Any) -> str:
    """An answer as the model writes it: what the template shows of the turn, without its special
    tokens."""
    start, stop = spans_of(tokenizer, said.answered(answer), len(said.turns))
    ids = tokenizer(stop.removeprefix(start), add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def turn_end(said: Conversation, tokenizer: Any) -> str:
    """What the template writes after an answer's words. Raises DataError as `shown`."""
    words = "3f9a"  # nothing that a template would write itself
    start, stop = spans_of(tokenizer, said.answered(words), len(said.turns))
    return stop.removeprefix(start).partition(words)[2]


@contextmanager
def named(place: Callable[[], str]) -> Iterator[None]:
    """Errors of the data say where the row stands."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place()}: {error}") from error
