"""A suspect tried for one client's marks: what it says of marked and control questions, as they
were asked and slightly changed, and what that proves.

Axes: N kept questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillhouse.core.seeding import derive, generator
from stillhouse.guard import evidence
from stillhouse.guard.registry import Kept
from stillhouse.guard.watermark import wrong_choice, wrong_span, wrong_words
from stillhouse.numerics.qa_metrics import f1

ALIKE = 0.5  # F1 from which on a span is taken for another
LEARNED = (0.2, 0.5, 0.9)  # shares of its marks that a copy may have learned, for the power
KEYS = 999  # fresh ones

Form = Literal["as asked", "changed"]
FORMS: tuple[Form, ...] = ("as asked", "changed")


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
    effect: float
    interval: tuple[float, float]
    power: dict[str, float]


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


def likely(kept: Kept, said: str, choices: Sequence[str]) -> float:
    """The share of keys whose wrong answer to a question the suspect's answer would be."""
    if choices:
        return float(said in choices and said != truth_of(kept)) / (len(choices) - 1)
    words = wrong_words(kept.pair or "", truth_of(kept))
    return sum(hits(said, word, spans=True) for word in words) / len(words) if words else 0.0


def odds(kept: Kept) -> float:
    """How many kept questions come to a mark, by the settings that this one was drawn with."""
    return min(1.0, kept.rate * (1 + kept.controls)) / kept.rate if kept.rate else 0.0


def trial(
    client: str, kept: Sequence[Kept], said: Said, choices: Sequence[str], *, alpha: float
) -> Trial:
    """Tests one client's kept questions; those drawn with other odds by themselves."""
    spans = not choices
    marked_N = np.array([each.kind == "mark" for each in kept], bool)
    pairs = list(zip(said.answers, kept, strict=True))
    hit_N = np.array([hits(answer, each.target, spans=spans) for answer, each in pairs], bool)
    true_N = np.array([hits(answer, truth_of(each), spans=spans) for answer, each in pairs], bool)
    likely_N = np.array([likely(each, answer, choices) for answer, each in pairs], float)
    odds_N = np.array([odds(each) for each in kept]).round(6)
    parts = [odds_N == each for each in np.unique(odds_N)]
    found = evidence.table(hit_N, marked_N)
    tables = [evidence.table(hit_N[part], marked_N[part]) for part in parts]
    strata = [(likely_N[part], int(marked_N[part].sum())) for part in parts]
    rng = generator(derive(0, client, said.form), "fresh keys")
    wrong = int((~true_N & marked_N).sum())
    return Trial(
        client, said.form, found,
        float(true_N[marked_N].mean()) if marked_N.any() else 0.0,
        evidence.fisher(*tables),
        evidence.permutation(strata, found.hits, rng, keys=KEYS),
        evidence.conditional(found.hits, wrong, len(choices)),
        *evidence.difference(*tables),
        {
            f"{learned:g}": evidence.power(*tables, learned=learned, alpha=alpha)
            for learned in LEARNED
        },
    )  # fmt: skip
