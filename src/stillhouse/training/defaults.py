"""How long a fine-tuning takes, at what rate, and which weights it keeps, where nobody says so.

Every choice is a function of the data's size, its classes, the validation rows and the model's
width. The numbers were chosen on parts of some data sets and judged on others: see
benchmarks/finetune_defaults.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stillhouse.core.sections import FinetuneTraining
from stillhouse.core.terms import AUTO

EPOCHS = (3.0, 30.0)  # passes over the data: at least, at most
STEPS, STEPS_A_CLASS = 400, 10  # that a new head needs, and with it the layers under it
RATE, AT_WIDTH = 5e-5, 768  # what BERT's authors found for its base size (2e-5 to 5e-5)
RATES = (1e-5, 5e-4)
MANY = 20  # classes: their new head has a long way to go
JUDGES = 100  # validation rows: of fewer, the luckiest weights would be kept, not the best
PLAIN = {"epochs": 3.0, "lr": 5e-5, "select": "best"}  # of tasks that these rules are not for


@dataclass(frozen=True)
class Facts:
    """What the choices depend on. per_epoch: optimizer steps of a pass over the data. classes: 1
    of a regression. new_head: whether the model's head is drawn afresh."""

    rows: int
    classes: int
    per_epoch: int
    validation: int
    width: int
    new_head: bool


def epochs_for(facts: Facts) -> float:
    """Passes over the data: as many as make the steps that a new head needs, which grow with the
    classes; 3 where it has that many steps by then, or the head is there already."""
    low, high = EPOCHS
    if not facts.new_head:
        return low
    steps = max(STEPS, STEPS_A_CLASS * facts.classes)
    return float(min(high, max(low, math.ceil(steps / facts.per_epoch))))


def rate_for(width: int, classes: int) -> float:
    """The largest learning rate of a model `width` wide, to two digits: RATE at BERT's width, and a
    smaller model takes larger steps, by the widths' ratio, for many classes by its square. A wider
    one takes smaller steps by the square: large models break more easily."""
    low, high = RATES
    ratio = AT_WIDTH / width
    power = 2 if classes >= MANY or ratio < 1 else 1
    return float(f"{min(high, max(low, RATE * ratio**power)):.1e}")


def settle(training: FinetuneTraining, facts: Facts | None) -> FinetuneTraining:
    """`training` with every `auto` replaced by what it becomes; without facts by PLAIN."""
    if facts is None:
        became: dict[str, Any] = PLAIN
    else:
        became = {
            "epochs": epochs_for(facts),
            "lr": rate_for(facts.width, facts.classes),
            "select": "best" if facts.validation >= JUDGES else "last",
        }
    left = [name for name in PLAIN if getattr(training, name) == AUTO]
    return training.model_copy(update={name: became[name] for name in left})


def asked(training: FinetuneTraining) -> list[str]:
    """The settings that are left to be chosen. Given steps end a training, not epochs."""
    return [
        name
        for name in PLAIN
        if getattr(training, name) == AUTO and not (name == "epochs" and training.steps)
    ]


def told(training: FinetuneTraining, chosen: list[str], facts: Facts) -> str:
    """What the settings that were `chosen` became, in a line for people."""
    steps = max(1, round(float(training.epochs) * facts.per_epoch)) if "epochs" in chosen else 0
    words = {
        "epochs": f"{training.epochs:g} epochs ({steps:,} steps)",
        "lr": f"lr {training.lr:g}",
        "select": f"the {training.select} weights kept",
    }
    kinds = f" of {facts.classes} classes" if facts.classes > 1 else ""
    return (
        f"{', '.join(words[name] for name in chosen)}: chosen for {facts.rows:,} rows{kinds}, "
        f"{facts.validation:,} held-out rows and a model {facts.width} wide"
    )
