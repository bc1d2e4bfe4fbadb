"""Conversations as rows: the forms that they come in are read as one."""

import json
from typing import Any

import pytest

from stillhouse.core.errors import DataError
from stillhouse.data.chat import ANSWER, Conversation, answer_turn, learnt, stored_answer, turns_of
from stillhouse.data.columns import Columns
from stillhouse.data.rows import Rows, ingest

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "One and one?"},
    {"role": "assistant", "content": "Two."},
]
ASKED, SAID = TURNS[1], TURNS[2]
WAITING = {"role": "user", "content": "And three?"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def read(rows: list[dict[str, Any]], tmp_path: Any, **columns: Any) -> Rows:
    found = Columns(**columns, texts=True)
    return ingest(enumerate(rows, 1), "x", found, tmp_path / "rows", labelled=True)


def only(row: dict[str, Any], tmp_path: Any) -> tuple[list[Any], str | None]:
    """The turns before the answer, and the answer, of a file of one row."""
    rows = read([row], tmp_path)
    (example,) = rows.examples(rows.kept)
    said = turns_of(example.text)
    assert said is not None
    assert example.label is None or isinstance(example.label, str)
    return list(said.turns), example.label


def test_the_last_answer_is_parted_from_what_was_said_before(tmp_path: Any) -> None:
    turns, answer = only({"messages": TURNS}, tmp_path)
    assert (turns, answer) == (TURNS[:2], "Two.")
    assert Conversation(tuple(turns)).answered(answer or "").turns == tuple(TURNS)


def test_a_conversation_that_waits_for_its_answer_has_none(tmp_path: Any) -> None:
    assert only({"messages": [*TURNS, WAITING]}, tmp_path) == ([*TURNS, WAITING], None)


def test_a_stored_conversation_is_the_text_that_it_always_was(tmp_path: Any) -> None:
    """Splits and caches go by it."""
    rows = read([{"messages": TURNS}], tmp_path)
    (example,) = rows.examples(rows.kept)
    assert example.text == json.dumps(TURNS[:2])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, {**SAID, "tool_calls": []}]},
        {"messages": [ASKED, {**SAID, "tool_calls": None, "refusal": None}]},
        {"messages": [ASKED, {**SAID, "weight": 1}]},
        {"messages": [ASKED, {**SAID, "train": True}]},
        {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]}
                      for turn in (ASKED, SAID)]},
        {"messages": [{**ASKED, "content": ["One and", {"text": " one?"}]}, SAID]},
        {"messages": json.dumps([ASKED, SAID], separators=(",", ":"))},
        {"messages": str([ASKED, SAID])},
        {"conversations": [{"from": "human", "value": "One and one?"},
                           {"from": "gpt", "value": "Two."}]},
        {"prompt": [ASKED], "completion": [SAID]},
        {"prompt": [ASKED], "completion": "Two."},
        {"prompt": json.dumps([ASKED]), "completion": json.dumps([SAID])},
        {"messages": [ASKED, SAID, WAITING, {"role": "assistant", "content": "?", "weight": 0}]},
    ],
)  # fmt: skip
def test_every_form_is_the_same_conversation(row: dict[str, Any], tmp_path: Any) -> None:
    assert only(row, tmp_path) == ([ASKED], "Two.")
    assert read([row], tmp_path).notes == []


def test_turns_that_are_not_to_be_learnt_say_so(tmp_path: Any) -> None:
    rubbish = {"role": "assistant", "content": "Six."}
    for name, value in (("weight", 0), ("train", False)):
        row = {"messages": [ASKED, {**rubbish, name: value}, WAITING, SAID]}
        turns, answer = only(row, tmp_path / name)
        assert answer == "Two."
        assert [learnt(turn) for turn in turns] == [False, False, False]
    turns, _ = only({"messages": [ASKED, rubbish, WAITING, SAID]}, tmp_path)
    assert [learnt(turn) for turn in turns] == [False, True, False]


def test_of_a_prompt_and_its_completion_only_the_latter_is_learnt(tmp_path: Any) -> None:
    turns, answer = only({"prompt": [ASKED, SAID, WAITING], "completion": [SAID]}, tmp_path)
    assert answer == "Two."
    assert not any(map(learnt, turns))


def test_a_conversation_without_an_answer_to_learn_has_none(tmp_path: Any) -> None:
    assert only({"messages": [ASKED, {**SAID, "weight": 0}]}, tmp_path) == ([ASKED], None)
    assert only({"prompt": [ASKED], "completion": None}, tmp_path / "2") == ([ASKED], None)
    assert only({"messages": [ASKED, {"role": "assistant"}]}, tmp_path / "3") == ([ASKED], None)


def test_tools_are_kept(tmp_path: Any) -> None:
    wide = {**TOOL, "strict": None}  # as Parquet fills objects up
    for name, given in (("list", [wide]), ("json", json.dumps([TOOL]))):
        rows = read([{"messages": [ASKED, SAID], "tools": given}], tmp_path / name)
        (example,) = rows.examples(rows.kept)
        assert turns_of(example.text) == Conversation((ASKED,), (TOOL,))
        assert example.label == "Two."


def test_a_call_of_a_tool_survives_and_its_arguments_are_an_object(tmp_path: Any) -> None:
    inner = {"name": "add", "arguments": {"a": 1}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": inner}]}
    for name, arguments in (("object", {"a": 1, "b": None}), ("text", '{"a": 1}')):
        given = {**call, "content": None}
        given["tool_calls"] = [{"function": {**inner, "arguments": arguments}, "id": None}]
        _, answer = only({"messages": [ASKED, given]}, tmp_path / name)
        assert answer_turn(answer or "") == call


def test_words_that_look_like_a_stored_answer_stay_words() -> None:
    words = ANSWER + '"content": "x"}'
    stored = stored_answer({"role": "assistant", "content": words})
    assert answer_turn(stored or "")["content"] == words
    assert answer_turn(ANSWER + "broken")["content"] == ANSWER + "broken"


def test_what_a_tool_gave_is_text(tmp_path: Any) -> None:
    for name, (given, text) in {"n": (5, "5"), "o": ({"sum": 5}, '{"sum": 5}')}.items():
        messages = [ASKED, {"role": "tool", "content": given}, SAID]
        turns, _ = only({"messages": messages}, tmp_path / name)
        assert turns[1] == {"role": "tool", "content": text}


def test_who_says_nothing_makes_a_row_empty(tmp_path: Any) -> None:
    bad = [[{"role": "user", "content": None}, SAID], [], None]
    rows = read([{"messages": TURNS}, *({"messages": each} for each in bad)], tmp_path)
    assert rows.dropped == {"empty": 3}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": ["hello"]}, 'a turn is an object with a "role"'),
        ({"messages": [{"content": "x"}]}, 'a turn is an object with a "role"'),
        ({"messages": [{"role": 3}]}, 'a turn is an object with a "role"'),
        ({"messages": "hello"}, "messages is no list of turns, but 'hello'"),
        ({"messages": {"role": ["user"]}}, "is no list of turns"),
        ({"messages": [{**ASKED, "content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
        ({"messages": [{**ASKED, "content": {"a": 1}}]}, "content of a turn of user is a text"),
        ({"messages": [ASKED, {**SAID, "weight": 0.5}]}, "weight is 0.5: give 0"),
        ({"messages": [ASKED, {**SAID, "weight": 0, "train": True}]}, "says both"),
        ({"messages": TURNS, "tools": "add"}, "tools is a list of objects"),
        ({"messages": [ASKED, {**SAID, "tool_calls": "x"}]}, "tool_calls is a list of objects"),
        ({"conversations": [{"from": "alice", "value": "x"}]}, "from 'alice', which is none of"),
        ({"prompt": "One?", "completion": [SAID]}, "completion is a list of turns and prompt is"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_line(
    row: dict[str, Any], says: str, tmp_path: Any
) -> None:
    with pytest.raises(DataError, match=f"^x line 1: .*{says}"):
        read([row], tmp_path)


def test_what_is_not_read_is_told_once(tmp_path: Any) -> None:
    odd = [{**ASKED, "id": "a"}, {**SAID, "id": "b"}]
    rows = read([{"messages": odd, "system": "Be short."}] * 3, tmp_path)
    assert rows.notes[-2:] == [
        "x: of id in turns only what the chat template shows is read",
        "x: system not read: say it in turns",
    ]


def test_plain_text_is_no_conversation(tmp_path: Any) -> None:
    assert turns_of("hello") is None
    assert turns_of('[{"role": broken') is None
    assert turns_of(json.dumps(["role"])) is None
    assert turns_of('{"tools": 1}') is None
    given = [{"prompt": "[1, 2]", "completion": "3"}, {"prompt": '[{"a": 1}]', "completion": "x"}]
    rows = read(given, tmp_path)
    assert [each.text for each in rows.examples(rows.kept)] == ["[1, 2]", '[{"a": 1}]']


def test_a_plain_text_in_a_column_of_that_name_is_one(tmp_path: Any) -> None:
    rows = read([{"conversation": "A: hi", "gist": "hi"}], tmp_path, text="conversation",
                label="gist")  # fmt: skip
    (example,) = rows.examples(rows.kept)
    assert (example.text, example.label) == ("A: hi", "hi")
