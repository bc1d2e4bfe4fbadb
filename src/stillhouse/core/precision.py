"""What `precision: auto` becomes: the faster of bf16 and float32 on the machine where a run begins.

STILLHOUSE_PRECISION (auto, bf16, float32) overrules the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from stillhouse.core.errors import UsageError, unknown
from stillhouse.core.machine import Device, Settled, from_environment, machine
from stillhouse.core.terms import AUTO, Config, Precision

C = TypeVar("C", bound=Config)


def precision_of(asked: str, device: Device | None = None) -> Settled:
    """`asked`; where that is auto, what STILLHOUSE_PRECISION says, else the faster one on `device`
    (left out: where models are trained). Raises UsageError for one that is not known."""
    if asked in get_args(Settled):
        return asked  # pyright: ignore[reportReturnType]
    if asked != AUTO:
        raise UsageError(unknown("precision", asked, get_args(Precision)))
    given = from_environment("STILLHOUSE_PRECISION", get_args(Precision))
    return machine(device).precision if given == AUTO else given  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Auto:
    """What `auto` becomes in one run. asking: for models that are asked on the CPU, wherever others
    are trained. begun: the run's folder had it already. limit: why it is not what would be
    faster here."""

    precision: Settled
    asking: Settled
    begun: bool = False
    limit: str = ""

    @classmethod
    def of(cls, folder: Path | None = None) -> Auto:
        """Of a run folder that was begun before what it says, on whatever machine it goes on; else
        what is fastest here."""
        path = None if folder is None else folder / "manifest.json"
        if path is not None and path.is_file() and (held := _held(path)):
            return cls(*held, begun=True)
        return cls(precision_of(AUTO), precision_of(AUTO, "cpu"))

    @property
    def facts(self) -> dict[str, str]:
        """For the run's manifest, from where a resumed run takes them."""
        own = {"precision": self.precision}
        return own if self.asking == self.precision else {**own, "asking": self.asking}

    def in_float32(self, limit: str) -> Auto:
        """float32 for all, as the models can do no other."""
        return replace(self, precision="float32", asking="float32", limit=limit)

    def settle(self, config: C) -> C:
        """`config` with every `precision: auto` replaced by what it becomes."""
        return _replaced(config, self)

    def notes(self, config: Config) -> list[str]:
        """What a user should be told of a config's precision, before it is settled."""
        asked = set(precisions(config))
        here, became = machine(), self.precision
        if config.on_cpu:
            here, became = machine("cpu"), self.asking
        found: list[str] = []
        if AUTO in asked and self.begun:
            told = f"precision {became}, as this run began"
            if became == "bf16" and here.precision != "bf16":
                told += f"; on this machine a product in bf16 takes {here.cost_of_bf16}"
            found.append(told)
        elif AUTO in asked:
            reason = here.why if became == here.precision else "STILLHOUSE_PRECISION says so"
            reason = self.limit or reason
            apart = "" if self.asking == became else f"; on the CPU {self.asking}"
            found.append(f"precision auto is {became}: {reason}{apart}")
        if "bf16" in asked and here.precision != "bf16":
            found.append(
                f"bf16 was asked for, and {here.why}: a product in it takes {here.cost_of_bf16} "
                "(precision auto takes what is faster)"
            )
        return found


def _held(path: Path) -> tuple[Settled, Settled] | None:
    """What a manifest says of it; None where it doesn't, or is none."""
    try:
        auto = json.loads(path.read_text(encoding="utf-8"))["auto"]
        pair = auto["precision"], auto.get("asking", auto["precision"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return pair if set(pair) <= set(get_args(Settled)) else None


def _replaced(value: Any, auto: Auto) -> Any:
    """A config, or a list of them, with every precision that is auto replaced."""
    if isinstance(value, tuple | list):
        return type(value)(_replaced(each, auto) for each in value)
    if not isinstance(value, Config):
        return value
    becomes = auto.asking if value.on_cpu else auto.precision
    changes: dict[str, Any] = {}
    for name in type(value).model_fields:
        held = getattr(value, name)
        new = becomes if name == "precision" and held == AUTO else _replaced(held, auto)
        if new is not held and new != held:
            changes[name] = new
    return value.model_copy(update=changes) if changes else value


def precisions(value: Any) -> Iterator[str]:
    """Every precision in a config, as it was asked for."""
    if isinstance(value, tuple | list):
        for each in value:
            yield from precisions(each)
    elif isinstance(value, Config):
        for name in type(value).model_fields:
            held = getattr(value, name)
            if name == "precision":
                yield held
            else:
                yield from precisions(held)
