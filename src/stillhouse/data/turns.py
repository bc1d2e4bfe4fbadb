"""Conversations in the cells of a row: the forms they come in, read as one.

`messages` (or `conversations`): all turns. `prompt` and `completion` as lists of turns: only the
completion is learnt (TRL's form). Turns are {"role", "content"}, or {"from", "value"} (ShareGPT).
Each may also be the text of its JSON, as tables hold it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from typing import Any

from stillhouse.core.errors import DataError
from stillhouse.data.cells import cell_text, plain, value_at
from stillhouse.data.chat import ASSISTANT, WEIGHT, Conversation, Turn, parted

CONVERSATIONS = ("messages", "conversations", "conversation")  # columns of whole conversations
TOOLS = "tools"
NOT_SHOWN = ("system", "functions", "function_call", "documents", "chat_template_kwargs")
SHAREGPT = {
    "human": "user", "user": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, ASSISTANT: ASSISTANT,
    "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip
LEARNT = (WEIGHT, "train", "training")  # members that say whether a turn is to be learnt
KNOWN = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking"}
TOOL_ROLES = ("tool", "function", "ipython")
TEXT_PARTS = ("text", "input_text", "output_text")
Note = Callable[[str], None]


def conversation_in(
    row: dict[str, Any], text: str, label: str | None, note: Note
) -> tuple[str | None, str | None] | None:
    """What was said, and the answer, as `parted` stores them; None for a row of plain texts.
    `text`, `label`: the columns. `note` hears of what is not read. Raises DataError."""
    whole = label is None and text.lower() in CONVERSATIONS
    raw = _listed(value_at(row, text), whole=whole, column=text)
    if raw is None:
        if whole:
            return None, None
        answer = None if label is None else value_at(row, label)
        if label is not None and _listed(answer, whole=False, column=label) is not None:
            raise DataError(f"{label} is a list of turns and {text} is none: give both as lists")
        return None
    for name in NOT_SHOWN:
        if row.get(name) is not None:
            note(f"{name} not read: say it in turns")
    turns = [turn for each in raw if (turn := _turn(each, note)) is not None]
    if len(turns) < len(raw):  # someone said nothing
        return None, None
    tools = _tools(plain(row.get(TOOLS)))
    if label is None or label == text:
        return parted(turns, tools)
    answer = plain(value_at(row, label))
    more = _listed(answer, whole=False, column=label)
    if more is None and turns and turns[-1]["role"] == ASSISTANT:
        if not _is_empty(answer):
            note(f"{label} not read: {text} ends with an answer")
        return parted(turns, tools)
    context = [_context(turn) for turn in turns]
    if more is None and _is_empty(answer):
        return Conversation(tuple(context), tuple(tools)).stored if context else None, None
    if more is None:
        more = [{"role": ASSISTANT, "content": answer}]
    said = [turn for each in more if (turn := _turn(each, note)) is not None]
    return parted([*context, *said], tools) if context else (None, None)


def _context(turn: Turn) -> Turn:
    """A turn of a prompt: the assistant's are not learnt, unless they say so."""
    return {**turn, WEIGHT: 0} if turn["role"] == ASSISTANT else turn


def _listed(cell: Any, *, whole: bool, column: str) -> list[Any] | None:
    """A cell's list of turns, also from the text of one; None for another text, and for nothing.
    `whole`: the column is for conversations only, so that any other cell is an error."""
    cell = plain(cell)
    if isinstance(cell, list):
        texts = bool(cell) and all(isinstance(each, str) for each in cell)
        return cell if whole or not texts else None
    found = _parsed(cell) if isinstance(cell, str) else None
    if isinstance(found, list) and (whole or _turns_all(found)):
        return found
    if not whole or _is_empty(cell):
        return None
    raise DataError(f"{column} is no list of turns, but {str(cell)[:40]!r}: give it as JSON")


def _is_empty(cell: Any) -> bool:
    """Whether there is nothing in a cell that holds no list and no object."""
    return not isinstance(cell, dict | list) and cell_text(cell) is None


def _turns_all(found: list[Any]) -> bool:
    """Whether a list that stood in a text is one of turns, and not a text that looks like one."""
    return bool(found) and all(
        isinstance(each, dict) and {"role", "from"} & set(each) for each in found
    )


def _parsed(text: str) -> Any:
    """What a text says as JSON, or as Python writes a list (pandas does, to CSV)."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _tools(cell: Any) -> list[Turn]:
    """The tools of a row: a list of objects, or its JSON."""
    found = _parsed(cell) if isinstance(cell, str) else cell
    if cell == [] or _is_empty(cell):
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise DataError(f"tools is a list of objects (JSON schemas), got {str(cell)[:40]!r}")
    return [_filled(each) for each in found]


def _filled(value: Any) -> Any:
    """Without members that are null: Parquet gives every object the members of all of them."""
    if isinstance(value, dict):
        return {name: _filled(each) for name, each in value.items() if each is not None}
    return [_filled(each) for each in value] if isinstance(value, list) else value


def _turn(raw: Any, note: Note) -> Turn | None:
    """A turn with its content as text; None for one in which nobody says anything."""
    if not isinstance(raw, dict):
        raise DataError('a turn is an object with a "role" and a "content"')
    raw = {name: value for name, value in raw.items() if value is not None and value != []}
    if "role" not in raw and "from" in raw:
        raw = _of_sharegpt(raw)
    role = raw.get("role")
    if not isinstance(role, str) or not role.strip():
        raise DataError('a turn is an object with a "role" and a "content"')
    more = {name: value for name, value in raw.items() if name not in ("role", "content", *LEARNT)}
    if calls := more.get("tool_calls"):
        more["tool_calls"] = _calls(calls)
    unknown = sorted(set(more) - KNOWN)
    if unknown:
        note(f"of {', '.join(unknown)} in turns only what the chat template shows is read")
    if "content" not in raw and role != ASSISTANT and role not in TOOL_ROLES:
        return None
    turn = {"role": role, "content": _content(raw.get("content", ""), role), **more}
    if _weight(raw, role, note) == 0:
        turn[WEIGHT] = 0
    return turn


def _of_sharegpt(raw: Turn) -> Turn:
    who = raw["from"]
    if not isinstance(who, str) or who not in SHAREGPT:
        known = ", ".join(SHAREGPT)
        raise DataError(f"a turn is from {who!r}, which is none of {known}: rename it")
    more = {name: value for name, value in raw.items() if name not in ("from", "value")}
    said = {"content": raw["value"]} if "value" in raw else {}
    return {"role": SHAREGPT[who], **said, **more}


def _content(value: Any, role: str) -> str:
    """A turn's content as text: parts of text are joined, a number is its digits, what a tool
    gave is JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(_is_part(part) for part in value):
        return "".join(_part(part) for part in value)
    if isinstance(value, int | float) or role in TOOL_ROLES:
        return json.dumps(value, ensure_ascii=False)
    raise DataError(
        f"the content of a turn of {role} is a text or a list of texts, got {str(value)[:40]!r}"
    )


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and ("type" in part or "text" in part))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind, text = part.get("type") or "text", part.get("text")
    if kind not in TEXT_PARTS or not isinstance(text, str):
        raise DataError(
            f"a turn has a part of type {kind!r}, and only text is read: leave the row out"
        )
    return text


def _calls(calls: Any) -> list[Any]:
    """Calls of tools, their arguments as objects: chat templates take these, APIs give JSON."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"tool_calls is a list of objects, got {str(calls)[:40]!r}")
    found = _filled(calls)
    for call in found:
        inner = call.get("function", call)
        if isinstance(inner, dict) and isinstance(inner.get("arguments"), str):
            arguments = _parsed(inner["arguments"])
            if isinstance(arguments, dict):
                inner["arguments"] = arguments
    return found


def _weight(raw: Turn, role: str, note: Note) -> int:
    """1 for a turn that is to be learnt, 0 for one that is not."""
    given = {name: raw[name] for name in LEARNT if name in raw}
    for name, value in given.items():
        if value not in (0, 1):
            raise DataError(
                f"a turn's {name} is {value!r}: give 0 (false) or 1 (true), no other "
                "weight is understood"
            )
    if len({int(value) for value in given.values()}) > 1:
        told = ", ".join(f"{name} {value}" for name, value in given.items())
        raise DataError(f"a turn says both {told}: leave one out")
    weight = int(next(iter(given.values()), 1))
    if given and weight and role != ASSISTANT:
        note("a weight of turns that are not the assistant's is not read: only its own are learnt")
    return weight if role == ASSISTANT else 1
