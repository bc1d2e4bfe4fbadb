"""A conversation as one value: its turns, and the tools that may be called in it.

A row holds what was said before the answer as text, and the assistant's last turn as the label.
`turns.py` reads both from a row's cells, `shown.py` shows them by a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.core.folding import folded

Turn = dict[str, Any]
ASSISTANT = "assistant"
CHAT_TEMPLATE = (  # of tokenizers made here: a turn is its role, its words, and the end token
    "{% if tools %}tools\n{{ tools | tojson }}{{ eos_token }}{% endif %}"
    "{% for turn in messages %}{{ turn.role }}\n"
    "{{ turn.content if turn.content is string else turn | tojson }}"
    "{% if turn.tool_calls and turn.content is string %}{{ turn.tool_calls | tojson }}{% endif %}"
    "{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
MARK = '[{"role": '  # how a stored conversation begins
WITH_TOOLS = '{"tools": '  # how one with tools does
ANSWER = '{"role": "assistant", '  # how a stored answer does that is more than its words
WEIGHT = "weight"  # of a turn that is not to be learnt: 0


@dataclass(frozen=True)
class Conversation:
    """Turns {"role": ..., "content": ...} as chat templates take them, and the tools."""

    turns: tuple[Turn, ...]
    tools: tuple[Turn, ...] = ()

    @property
    def stored(self) -> str:
        """As a row's text: the same conversation is always the same text."""
        turns = json.dumps([_first(turn) for turn in self.turns], ensure_ascii=False)
        if not self.tools:
            return turns
        tools = json.dumps(self.tools, ensure_ascii=False)
        return f'{WITH_TOOLS}{tools}, "messages": {turns}}}'

    def answered(self, answer: str) -> Conversation:
        """The conversation with the assistant's last turn."""
        return Conversation((*self.turns, answer_turn(answer)), self.tools)

    def until(self, count: int) -> Conversation:
        """Its first turns."""
        return Conversation(self.turns[:count], self.tools)


def learnt(turn: Turn) -> bool:
    """Whether a turn is one to learn from: the assistant's, unless its weight is 0."""
    return turn["role"] == ASSISTANT and turn.get(WEIGHT, 1) != 0


def parted(turns: Sequence[Turn], tools: Sequence[Turn] = ()) -> tuple[str | None, str | None]:
    """What was said before the assistant's last turn that is to be learnt, and that turn, both as
    they are stored. What comes after it changes nothing that is learnt, and is left out; but a
    conversation that ends with another's turn waits for its answer. Either may be None: nothing
    was said, or there is no such turn."""
    if not turns or turns[-1]["role"] != ASSISTANT:
        return _stored(turns, tools), None
    wanted = [place for place, turn in enumerate(turns) if learnt(turn)]
    if not wanted:
        return _stored(turns[:-1], tools), None
    at = wanted[-1]
    return _stored(turns[:at], tools), stored_answer(turns[at])


def _stored(turns: Sequence[Turn], tools: Sequence[Turn]) -> str | None:
    return Conversation(tuple(turns), tuple(tools)).stored if turns else None


def stored_answer(turn: Turn) -> str | None:
    """An assistant's turn as a row's label: its words; as JSON where there is more in it, and
    where its words could be taken for that. None for a turn without anything."""
    words = turn["content"].strip()
    if set(turn) == {"role", "content"} and not words.startswith(ANSWER):
        return words or None
    return json.dumps(_first(turn), ensure_ascii=False)


def answer_turn(answer: str) -> Turn:
    """The turn that a label stands for."""
    if answer.startswith(ANSWER):
        try:
            return json.loads(answer)
        except ValueError:  # a model's own text may begin so
            pass
    return {"role": ASSISTANT, "content": answer}


def folded_text(text: str) -> str:
    """A row's text, folded; of a conversation each of its texts for itself, as JSON writes line
    ends and other marks in letters, and its weights left out, as they are no words of it."""
    held = turns_of(text)
    if held is None:
        return folded(text)
    turns = tuple({k: v for k, v in turn.items() if k != WEIGHT} for turn in held.turns)
    plain = Conversation(_each_folded(turns), _each_folded(held.tools))
    return folded(plain.stored)


def _each_folded(value: Any) -> Any:
    """A value of JSON with each text in it folded; the names of members stay."""
    if isinstance(value, dict):
        return {name: _each_folded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_folded(each) for each in value)
    return folded(value) if isinstance(value, str) else value


def _first(turn: Turn) -> Turn:
    """A turn with its role first, which is how a stored one is known."""
    return {"role": turn["role"], **{k: v for k, v in turn.items() if k != "role"}}


def turns_of(text: str) -> Conversation | None:
    """The conversation that a row's text stands for; None for a plain text."""
    if not text.startswith((MARK, WITH_TOOLS)):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    turns, tools = found, []
    if isinstance(found, dict):
        if set(found) != {"tools", "messages"}:
            return None
        turns, tools = found["messages"], found["tools"]
    if not all(isinstance(turn, dict) and "role" in turn for turn in turns):
        return None
    return Conversation(tuple(turns), tuple(tools))
