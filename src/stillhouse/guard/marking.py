"""Which answers are marked: drawn by the key, decided once, and given again to whoever asks again.

A question that is kept, as a mark or a control, waits until the registry has it; a flagged client
may get less, or nothing of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.core.errors import UsageError
from stillhouse.core.folding import folded
from stillhouse.core.types import Example
from stillhouse.extract.views import View
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import About, Truth
from stillhouse.guard.registry import ClientRow, Kept
from stillhouse.guard.settings import GuardConfig
from stillhouse.guard.watermark import (
    Draw,
    canonical,
    draw,
    permuted,
    wrong_choice,
    wrong_span,
)
from stillhouse.guard.writer import PASSED, Row


@dataclass(frozen=True)
class Asked:
    """A question: content, its folded texts; name, what the registry calls it."""

    example: Example
    content: bytes
    name: bytes

    @classmethod
    def by(cls, client: str, example: Example, keys: Keys) -> Asked:
        content = canonical(example.text, example.pair)
        return cls(example, content, keys.query(client, content))

    @property
    def written(self) -> tuple[str | None, str | None]:
        return self.example.text, self.example.pair


@dataclass(frozen=True)
class Before:
    """A decision about a question: mark, control or passed (neither, for good), what was served if
    it was kept, in which view, and how the question was written."""

    kind: str
    served: Row | None
    shows: str
    written: tuple[str | None, str | None]


@dataclass
class Plan:
    """What becomes of one question: its answer, or where it is kept as evidence the decision to
    wait for, and `wrong`, its answer if that is a mark. shows: the view of both; written: the
    question as it was."""

    answer: Row
    wrong: Row | None = None
    shows: str = ""
    written: tuple[str | None, str | None] = (None, None)
    decision: Future[Row] | None = None


class Marking:
    """What the key does to one model's answers. `decide` writes a decision down, unless there is
    one, and has the one that holds. Raises UsageError for a list of spared texts that is none."""

    def __init__(
        self, config: GuardConfig, keys: Keys, about: About,
        decide: Callable[[Row], Future[Row]],
    ) -> None:  # fmt: skip
        self._config, self._keys, self._about, self._decide = config, keys, about, decide
        self._view = config.view(about.task)
        self._spare = _spare_list(config.marks.spare)
        self._before: dict[bytes, Before] = {}

    def recall(self, kept: Iterable[Kept]) -> None:
        """Learns what was decided before, whatever the settings are now."""
        self._before = {
            each.query: Before(each.kind, each.served, each.shows, (each.text, each.pair))
            for each in kept
            if each.key == self._keys.id
        }

    def plan(self, row: ClientRow, asked: Asked, truth: Truth, now: float) -> Plan:
        """The answer to one question, and whether it waits for a decision."""
        flagged, on_flag = row.flagged is not None, self._config.check.on_flag
        if flagged and on_flag == "random":  # nothing of the model is in it: nothing to mark
            return Plan(self._random(row.id, asked, truth))
        view = self._view
        if flagged and on_flag == "label" and self._about.task == "classification":
            view = View("label")
        plain = shown(truth, view, self._about.choices)
        if truth.value is not None:  # no value is wrong
            return Plan(plain)
        settings = self._config.marks
        whose = row.id if settings.scope == "client" else ""
        drawn = draw(self._keys.marking, whose, asked.content)
        if asked.name in self._before:
            marked = self._wrong(asked.example, truth, drawn)
            wrong = None if marked is None else shown(marked[1], view, self._about.choices)
            found = Plan(plain, wrong, view.name, asked.written)
            return Plan(self._again(self._before[asked.name], found))
        rate = settings.at(row.distinct)
        band = drawn.band(rate, settings.controls)
        possible = max(settings.rate, settings.most if rate else 0.0)
        if band == "plain" and drawn.chance >= possible:
            return Plan(plain)
        marked = None if self._spared(asked, truth) else self._wrong(asked.example, truth, drawn)
        if marked is None:
            return Plan(plain)
        target, wrong_truth = marked
        wrong = shown(wrong_truth, view, self._about.choices)
        text, pair = asked.written
        kept = {
            "time": now, "client": row.id, "query": asked.name, "kind": band, "text": text,
            "pair": pair, "truth": plain, "served": wrong if band == "mark" else plain,
            "target": target, "shows": view.name, "rate": rate, "controls": settings.controls,
            "scope": settings.scope, "key": self._keys.id, "model": self._about.fingerprint,
        }  # fmt: skip
        if band == "plain":  # it could have been a mark before: that it is none now is for good
            kept |= PASSED
        return Plan(plain, wrong, view.name, asked.written, self._decide(kept))

    def settled(self, plan: Plan, decision: Row) -> Row:
        """A question's answer by the decision that holds."""
        before = Before(
            decision["kind"], decision["served"], decision["shows"],
            (decision["text"], decision["pair"]),
        )  # fmt: skip
        self._before[bytes(decision["query"])] = before
        return self._again(before, plan)

    def _again(self, before: Before, plan: Plan) -> Row:
        """A kept question's answer as it was given first, to the last digit; where more or less is
        shown today, the same answer in today's form. Written otherwise, its own answer, wrong if
        the question is marked: of no question have two forms the same digits."""
        if before.served is None:
            return plan.answer
        if before.written == plan.written:
            if before.shows == plan.shows:
                return before.served
            if before.kind == "mark" and plan.answer.keys() == {"label"}:
                return {"label": before.served["label"]}
        if before.kind != "mark":
            return plan.answer
        return plan.wrong if plan.wrong is not None else plan.answer

    def _spared(self, asked: Asked, truth: Truth) -> bool:
        """Whether a question is never marked."""
        above, shares_K = self._config.marks.spare_above, truth.probabilities_K
        if above is not None and shares_K is not None and float(shares_K.max()) > above:
            return True
        return asked.content in self._spare

    def _wrong(self, example: Example, truth: Truth, drawn: Draw) -> tuple[str, Truth] | None:
        """The wrong answer that the key gives a question, by name and whole; None where it has
        none."""
        if truth.text is not None:
            word = wrong_span(drawn.pick, example.pair or "", truth.text)
            return None if word is None else (word, Truth(text=word))
        shares_K = truth.probabilities_K
        if shares_K is None or len(shares_K) < 2:
            return None
        target = wrong_choice(drawn.pick, int(shares_K.argmax()), len(shares_K))
        return self._about.choices[target], Truth(probabilities_K=permuted(shares_K, target))

    def _random(self, client: str, asked: Asked, truth: Truth) -> Row:
        """An answer that only the key and the question made: the model has no part in it."""
        drawn = draw(self._keys.of("random answers"), client, asked.content)
        rng = np.random.default_rng(drawn.pick)
        if truth.text is not None:
            word = wrong_span(drawn.pick, asked.example.pair or "", "")
            return {"text": word or ""}
        if truth.value is not None:
            return {"value": round(float(rng.uniform(-1, 1)), 3)}
        shares_K = rng.dirichlet(np.full(len(self._about.choices), 0.5))
        return shown(Truth(probabilities_K=shares_K), self._view, self._about.choices)


def shown(truth: Truth, view: View, names: Sequence[str]) -> Row:
    """An answer as clients see it."""
    digits = view.digits
    if truth.text is not None:
        return {"text": truth.text}
    if truth.value is not None:
        return {"value": truth.value if digits is None else round(truth.value, digits)}
    assert truth.probabilities_K is not None
    shares_K = truth.probabilities_K
    found: Row = {"label": names[int(shares_K.argmax())]}
    if view.shows == "label":
        return found
    order = np.argsort(-shares_K, kind="stable")[: view.top]
    found["probabilities"] = {
        names[i]: float(shares_K[i]) if digits is None else round(float(shares_K[i]), digits)
        for i in sorted(order.tolist())
    }
    return found


def _spare_list(path: str | None) -> frozenset[bytes]:
    """Questions that are never marked: a line each, a pair's two texts with a tab between. Raises
    UsageError."""
    if path is None:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read marks.spare {path}: {error}") from None
    found: set[bytes] = set()
    for line in filter(folded, lines):
        text, tab, pair = line.partition("\t")
        found.add(canonical(text, pair if tab else None))
    return frozenset(found)
