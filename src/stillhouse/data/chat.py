"""Conversations as rows: what was said so far is the text, the assistant's last turn the answer.

A conversation is a list of turns {"role": ..., "content": ...}, as chat templates take it; turns
of tools, and calls of them, stay as they are.
"""

from __future__ import annotations

import json
from typing import Any

from stillhouse.core.errors import DataError

Turn = dict[str, Any]
ASSISTANT = "assistant"
CHAT_TEMPLATE = (  # of tokenizers made here: a turn is its role, its words, and the end token
    "{% for turn in messages %}{{ turn.role }}\n"
    "{{ turn.content if turn.content is string else turn | tojson }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
MARK = '[{"role": '  # how a stored conversation begins


def parted(turns: list[Any], where: str) -> tuple[str | None, str | None]:
    """What was said before the assistant's last turn, as JSON, and that turn. Either may be None:
    nothing was said, or the last turn is another's. Raises DataError for what is no conversation.
    """
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise DataError(f'{where}: a turn is an object with a "role" and a "content"')
    if not turns:
        return None, None
    if turns[-1]["role"] != ASSISTANT:
        return stored(turns), None
    last = {name: value for name, value in turns[-1].items() if value is not None}
    only_text = set(last) == {"role", "content"} and isinstance(last["content"], str)
    answer = last["content"].strip() if only_text else json.dumps(_first(last), ensure_ascii=False)
    return (stored(turns[:-1]) if turns[:-1] else None), answer or None


def stored(turns: list[Turn]) -> str:
    return json.dumps([_first(turn) for turn in turns], ensure_ascii=False)


def _first(turn: Turn) -> Turn:
    """A turn with its role first, which is how a stored one is known."""
    return {"role": turn["role"], **{k: v for k, v in turn.items() if k != "role"}}


def turns_of(text: str) -> list[Turn] | None:
    """The turns of a stored conversation; None for a plain text."""
    if not text.startswith(MARK):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    whole = all(isinstance(turn, dict) and "role" in turn for turn in found)
    return found if whole else None


def answered(turns: list[Turn], answer: str) -> list[Turn]:
    """The conversation with the assistant's last turn."""
    if answer.startswith('{"role": "assistant"'):
        return [*turns, json.loads(answer)]
    return [*turns, {"role": ASSISTANT, "content": answer}]
