"""Whether a fine-tuned model's own log says that its training ended too early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.errors import UsageError
from stillhouse.core.results import Record
from stillhouse.core.units import margin_of

ENTRIES = 6  # logged losses; fewer tell nothing
FALLS, HIGH = 0.9, 0.25  # of the loss of the third before; of the first one


def unfinished(folder: str | Path) -> str | None:
    """What says that the training of the model in `folder` ended while it still learned; None
    where nothing does, or where it was not fine-tuned here.

    Its loss was still falling: that of the last third of its log is a tenth below that of the
    third before, and more than a quarter of the first. Its score was still rising: the last
    look at the held-out rows beat all before by more than the metric's margin.
    """
    path = Path(folder)
    try:
        record = Record.open(path, "run")
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in lines]
    except (UsageError, OSError, ValueError):
        return None
    if record.flow != "finetune":
        return None
    signs = [*_loss(logged), *_score(logged, margin_of(record.metric))]
    return f"its training ended while it still learned ({' and '.join(signs)})" if signs else None


def _loss(logged: list[dict[str, Any]]) -> list[str]:
    losses = [row["loss"] for row in logged if row.get("loss") is not None]
    if len(losses) < ENTRIES:
        return []
    third = len(losses) // 3
    before, last = (float(np.mean(each)) for each in (losses[-2 * third : -third], losses[-third:]))
    if last > FALLS * before or last < HIGH * losses[0]:
        return []
    return [f"its loss fell from {before:.2f} to {last:.2f} at the end"]


def _score(logged: list[dict[str, Any]], margin: float) -> list[str]:
    scores = [row["score"] for row in logged if row.get("event") == "evaluate"]
    if len(scores) < 2 or scores[-1] <= max(scores[:-1]) + margin:
        return []
    return [f"its held-out score rose from {max(scores[:-1]):.3f} to {scores[-1]:.3f} at the end"]
