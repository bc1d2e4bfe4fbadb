"""metrics.jsonl, line by line, and what its lines warn of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.core.rundir import write_text, writes

IMBALANCE = 100.0


class MetricsLog:
    """metrics.jsonl: one line an event. Lines after a resumed run's checkpoint are cut off."""

    def __init__(self, path: Path | None, **labels: object) -> None:
        self.path, self.labels = path, labels

    def write(self, **values: object) -> None:
        if self.path is not None:
            with writes(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**self.labels, **values}) + "\n")

    def cut(self, step: int) -> None:
        """Drops this run's lines past `step`, and a torn last line."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row: dict[str, Any] = json.loads(line)
            except json.JSONDecodeError:
                continue
            mine = all(row.get(key) == value for key, value in self.labels.items())
            if not mine or row["step"] <= step:
                kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))


def imbalance(terms: Mapping[str, Mapping[str, float]], step: int) -> str | None:
    """A sentence where one term's gradient is over a hundred times another's."""
    norms = {n: t["gradient_norm"] for n, t in terms.items() if t["gradient_norm"] > 0}
    if len(norms) < 2:
        return None
    big, small = max(norms, key=lambda n: norms[n]), min(norms, key=lambda n: norms[n])
    if norms[big] <= IMBALANCE * norms[small]:
        return None
    return (
        f"the gradient of the {big} term is {norms[big] / norms[small]:.0f} times that of the "
        f"{small} term at step {step}: the {small} term hardly counts"
    )


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The same, None for what is not finite: JSON has no such number."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
