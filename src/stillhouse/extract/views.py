"""What an API shows of its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.core.errors import UsageError, unknown

Shows = Literal["probabilities", "label", "value", "text"]


@dataclass(frozen=True)
class View:
    """What is shown: probabilities (of the `top` choices, to so many `digits`), the label only, a
    value, or a text."""

    shows: Shows
    digits: int | None = None
    top: int | None = None

    @classmethod
    def read(cls, name: str) -> View:
        """From its name: probabilities, probabilities:3 (digits), top:2, top:2:3, label, value,
        value:1, text. Raises UsageError."""
        kind, *numbers = name.split(":")
        if kind not in ("probabilities", "top", "label", "value", "text"):
            known = ("probabilities", "probabilities:3", "top:2", "label", "value", "text")
            raise UsageError(unknown("view", name, known))
        most = {"probabilities": 1, "top": 2, "value": 1}.get(kind, 0)
        if len(numbers) > most or not all(n.isdigit() for n in numbers):
            raise UsageError(f"view {name!r}: write probabilities:3, top:2 or top:2:3")
        found = [int(n) for n in numbers]
        if kind == "top":
            if not found or found[0] < 1:
                raise UsageError(f"view {name!r}: say of how many choices, as in top:2")
            return cls("probabilities", found[1] if len(found) > 1 else None, found[0])
        return cls(kind, found[0] if found else None)  # pyright: ignore[reportArgumentType]

    @property
    def name(self) -> str:
        parts = [self.shows] if self.top is None else ["top", str(self.top)]
        return ":".join([*parts, *([] if self.digits is None else [str(self.digits)])])
