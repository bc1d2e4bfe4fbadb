"""Conversations as rows."""

import json

import pytest

from stillhouse.core.errors import DataError
from stillhouse.data.chat import answered, parted, turns_of
from stillhouse.data.columns import Columns
from stillhouse.data.rows import ingest

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "One and one?"},
    {"role": "assistant", "content": "Two."},
]


def test_the_last_answer_is_parted_from_what_was_said_before() -> None:
    text, answer = parted(TURNS, "here")
    assert answer == "Two."
    assert text is not None
    assert turns_of(text) == TURNS[:2]
    assert answered(turns_of(text) or [], answer) == TURNS


def test_a_conversation_without_an_answer_has_none() -> None:
    text, answer = parted(TURNS[:2], "here")
    assert (turns_of(text or ""), answer) == (TURNS[:2], None)


def test_a_call_of_a_tool_survives() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}
    text, answer = parted([*TURNS[:2], call], "here")
    assert answered(turns_of(text or "") or [], answer or "") == [*TURNS[:2], call]


@pytest.mark.parametrize("bad", [["hello"], [{"content": "x"}], [{"role": 3}]])
def test_what_is_no_conversation_is_refused(bad: list[object]) -> None:
    with pytest.raises(DataError, match='a turn is an object with a "role"'):
        parted(bad, "rows.jsonl line 3")


def test_plain_text_is_no_conversation() -> None:
    assert turns_of("hello") is None
    assert turns_of('[{"role": broken') is None
    assert turns_of(json.dumps(["role"])) is None


def test_messages_are_read_as_prompt_and_answer(tmp_path) -> None:
    source = [(1, {"messages": TURNS}), (2, {"messages": TURNS[:2]}), (3, {"messages": []})]
    rows = ingest(source, "x", Columns(texts=True), tmp_path / "rows", labelled=True)
    first, second = rows.examples(rows.kept)
    assert (first.label, second.label) == ("Two.", None)
    assert turns_of(first.text) == turns_of(second.text) == TURNS[:2]
    assert rows.dropped == {"empty": 1}
