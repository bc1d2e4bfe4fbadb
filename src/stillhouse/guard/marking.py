"""Which answers are marked: drawn by the key from what the model reads, and decided once.

A flagged client may get less, or nothing of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.core.errors import UsageError
from stillhouse.core.folding import folded
from stillhouse.core.types import Example
from stillhouse.extract.views import View
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import About, Truth
from stillhouse.guard.reading import Reading, Reads
from stillhouse.guard.registry import ClientRow
from stillhouse.guard.settings import GuardConfig
from stillhouse.guard.watermark import Draw, draw, permuted, wrong_choice, wrong_span
from stillhouse.guard.writer import PASSED, Row


@dataclass(frozen=True)
class Asked:
    """A question: what the model reads of it, and what the registry calls it."""

    example: Example
    reading: Reading
    name: bytes

    @classmethod
    def by(cls, client: str, example: Example, reading: Reading, keys: Keys) -> Asked:
        return cls(example, reading, keys.query(client, reading.content))

    @property
    def content(self) -> str:
        return self.reading.content


@dataclass(frozen=True)
class Plan:
    """What becomes of one question: its answer, the answer it has if it is marked, and where this
    may make it evidence the row that says so."""

    name: bytes
    answer: Row
    wrong: Row | None = None
    decision: Row | None = None

    def settled(self, kind: str | None) -> Row:
        """Its answer, by what was decided about it: mark, control, passed or nothing."""
        return self.wrong if kind == "mark" and self.wrong is not None else self.answer


class Marking:
    """What the key does to one model's answers. Of two answers to one question, or to forms that
    the model hardly tells apart, both are marked or none; each is made of what the model says at
    that time, so that no digit tells a question that is kept. Raises UsageError for a list of
    spared texts that is none."""

    def __init__(self, config: GuardConfig, keys: Keys, about: About, reads: Reads) -> None:
        self._config, self._keys, self._about = config, keys, about
        self._view = config.view(about.task)
        self._spare = _spare_list(config.marks.spare, reads)

    def plan(self, row: ClientRow, asked: Asked, truth: Truth, now: float) -> Plan:
        """The answer to one question, and what may be decided about it."""
        flagged, on_flag = row.flagged is not None, self._config.check.on_flag
        if flagged and on_flag == "random":  # nothing of the model is in it: nothing to mark
            return Plan(asked.name, self._random(row.id, asked, truth))
        view, choices, settings = self._view, self._about.choices, self._config.marks
        if flagged and on_flag == "label" and self._about.task == "classification":
            view = View("label")
        plain = shown(truth, view, choices)
        whose = row.id if settings.scope == "client" else ""
        drawn = draw(self._keys.marking, whose, asked.content)
        marked = self._wrong(asked.example, truth, drawn)  # of every question: it takes time
        if marked is None:
            return Plan(asked.name, plain)
        target, wrong_truth = marked
        wrong = shown(wrong_truth, view, choices)
        rate = settings.at(row.distinct)
        band = drawn.band(rate, settings.controls)
        possible = max(settings.rate, settings.most if rate else 0.0)
        if (band == "plain" and drawn.chance >= possible) or self._spared(asked, truth):
            return Plan(asked.name, plain, wrong)
        kept = {
            "time": now, "client": row.id, "query": asked.name, "kind": band,
            "text": asked.example.text, "pair": asked.example.pair, "read": asked.content,
            "truth": plain, "served": wrong if band == "mark" else plain,
            "target": target, "shows": view.name, "rate": rate, "controls": settings.controls,
            "scope": settings.scope, "key": self._keys.id, "model": self._about.fingerprint,
        }  # fmt: skip
        if band == "plain":  # it could have been a mark before: that it is none now is for good
            kept |= PASSED
        return Plan(asked.name, plain, wrong, kept)

    def _spared(self, asked: Asked, truth: Truth) -> bool:
        """Whether a question is never marked."""
        above, shares_K = self._config.marks.spare_above, truth.probabilities_K
        if above is not None and shares_K is not None and float(shares_K.max()) > above:
            return True
        return asked.content in self._spare

    def _wrong(self, example: Example, truth: Truth, drawn: Draw) -> tuple[str, Truth] | None:
        """The wrong answer that the key gives a question, by name and whole; None where it has
        none: no value is wrong."""
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


def _spare_list(path: str | None, reads: Reads) -> frozenset[str]:
    """Questions that are never marked: a line each, a pair's two texts with a tab between. Raises
    UsageError."""
    if path is None:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read marks.spare {path}: {error}") from None
    parts = [line.partition("\t") for line in filter(folded, lines)]
    examples = [Example(text, pair if tab else None) for text, tab, pair in parts]
    return frozenset(each.content for each in reads(examples))
