"""metrics.jsonl, line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillhouse.core.rundir import write_text


class MetricsLog:
    """metrics.jsonl: one line an event. Lines after a resumed run's checkpoint are cut off."""

    def __init__(self, path: Path | None, **labels: object) -> None:
        self.path, self.labels = path, labels

    def write(self, **values: object) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
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
