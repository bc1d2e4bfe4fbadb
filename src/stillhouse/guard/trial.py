"""A suspect tried for one client's marks: what it says of marked and control questions, as they
were asked and slightly changed, and what that proves.

Axes: N kept questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.core.seeding import derive, generator
from stillhouse.core.types import Example
from stillhouse.guard import evidence
from stillhouse.guard.registry import Kept
from stillhouse.guard.watermark import canonical, draw, wrong_choice, wrong_span
from stillhouse.tasks.span import f1

ALIKE = 0.5  # F1 from which on a span is taken for another
LEARNED = (0.2, 0.5, 0.9)  # shares of its marks that a copy may have learned, for the power
KEYS = 999  # fresh ones

Form = str  # "as asked", "changed"


@dataclass(frozen=True)
class Said:
    """What a suspect said of a client's kept questions, in one form: labels or texts."""

    form: Form
    answers: list[str]


@dataclass(frozen=True)
class Trial:
    """The evidence of one client against one suspect in one form of the questions."""

    client: str
    form: Form
    table: evidence.Table
    true: float  # share of marks answered truly
    p_value: float
    rekeyed: float
    conditional: float
    interval: tuple[float, float]
    power: dict[str, float]


def changed(example: Example, seed: int) -> Example:
    """A near-duplicate: of single texts and pairs one word is left out of the first text (of one
    word: said twice), and two that follow each other change places; of a question only the
    question changes, so that its answer stays."""
    rng = generator(seed, "changed", example.text, example.pair or "")
    words = example.text.split()
    if len(words) < 2:
        return Example(" ".join(words * 2), example.pair)
    if len(words) > 2:
        words.pop(int(rng.integers(len(words))))
    at = int(rng.integers(len(words) - 1)) if len(words) > 1 else 0
    words[at : at + 2] = reversed(words[at : at + 2])
    return Example(" ".join(words), example.pair)


def hits(said: str, target: str, *, spans: bool) -> bool:
    """Whether an answer is the keyed wrong one."""
    return f1(said, (target,)) >= ALIKE if spans else said == target


def truth_of(kept: Kept) -> str:
    """The true answer, as a name or text."""
    return str(kept.truth["text"] if "text" in kept.truth else kept.truth["label"])


def wrong_answer(kept: Kept, pick: int, choices: Sequence[str]) -> str | None:
    """What a key's `pick` makes of a kept question; None where a passage has no wrong word."""
    if not choices:
        return wrong_span(pick, kept.pair or "", truth_of(kept))
    return choices[wrong_choice(pick, choices.index(truth_of(kept)), len(choices))]


def trial(
    client: str, whose: str, kept: Sequence[Kept], said: Said, choices: Sequence[str], *,
    alpha: float,
) -> Trial:  # fmt: skip
    """Tests one client's kept questions. `whose`: what the key draws with: the client, or "" where
    marks are alike for everyone."""
    spans = not choices
    marked_N = np.array([each.kind == "mark" for each in kept], bool)
    hit_N = np.array(
        [hits(a, each.target, spans=spans) for a, each in zip(said.answers, kept, strict=True)],
        bool,
    )
    true_N = np.array(
        [hits(a, truth_of(e), spans=spans) for a, e in zip(said.answers, kept, strict=True)], bool
    )
    found = evidence.table(hit_N, marked_N)
    again = rekeying(whose, kept, said, choices)
    rng = generator(derive(0, client, said.form), "fresh keys")
    wrong = int((~true_N & marked_N).sum())
    return Trial(
        client, said.form, found,
        float(true_N[marked_N].mean()) if marked_N.any() else 0.0,
        evidence.fisher(found),
        evidence.permutation(again, found, rng, keys=KEYS),
        evidence.conditional(found.hits, wrong, len(choices)),
        evidence.interval(found),
        {
            f"{learned:g}": evidence.power(
                found.marks, found.controls, found.chance, learned, alpha
            )
            for learned in LEARNED
        },
    )  # fmt: skip


def rekeying(
    whose: str, kept: Sequence[Kept], said: Said, choices: Sequence[str]
) -> Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    """Of a key drawn anew: which questions would be hits, and which as many marks."""
    questions = [canonical(each.text, each.pair) for each in kept]
    count = sum(each.kind == "mark" for each in kept)

    def again(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        key = rng.bytes(32)
        drawn = [draw(key, whose, question) for question in questions]
        marked_N = np.zeros(len(kept), bool)
        marked_N[np.argsort([each.chance for each in drawn])[:count]] = True
        hit_N = np.zeros(len(kept), bool)
        for i in np.flatnonzero(marked_N).tolist():
            wrong = wrong_answer(kept[i], drawn[i].pick, choices)
            hit_N[i] = wrong is not None and hits(said.answers[i], wrong, spans=not choices)
        return hit_N, marked_N

    return again
