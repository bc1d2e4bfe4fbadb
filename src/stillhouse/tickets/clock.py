"""Models on the clock: medians in the runtime that a target is for, and what a block takes.

Axes: N rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from transformers import PreTrainedModel

from stillhouse.core.progress import Progress
from stillhouse.evaluation import efficiency
from stillhouse.export import export_onnx, onnx_runner, quantize_int8
from stillhouse.models.surgery import Kept, cut, sizes
from stillhouse.tasks.base import Data
from stillhouse.tickets.config import RemoveConfig

ROUNDS, LONGEST_S = 60, 10.0  # of timing: long enough to outlast what else the machine does
Seconds = Callable[[Sequence[PreTrainedModel]], list[float]]  # of each model


class Clock:
    """Median seconds of models in the asked runtime and batch, timed in turns."""

    def __init__(self, config: RemoveConfig, data: Data) -> None:
        self._runtime = config.runtime
        order = np.argsort(data.lengths, kind="stable")
        middle = max(0, min(len(order) // 2 - config.batch // 2, len(order) - config.batch))
        rows = order[middle : middle + config.batch]
        self._inputs = dict(data.batch(rows).inputs)
        self._sample = dict(data.batch(order[middle : middle + 4]).inputs)

    def __call__(self, models: Sequence[PreTrainedModel]) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            runners: dict[str, Any] = {
                str(i): (self._runner(model, Path(folder) / str(i)), self._inputs, self._inputs)
                for i, model in enumerate(models)
            }
            found = efficiency.time_all(runners, rounds=ROUNDS, longest_s=LONGEST_S)
        return [found[str(i)].latency_ms / 1e3 for i in range(len(models))]

    def _runner(self, model: PreTrainedModel, folder: Path) -> Any:
        if self._runtime == "torch":
            return efficiency.torch_runner(model)
        plain = export_onnx(model, self._sample, folder / "model.onnx")
        if self._runtime == "onnx":
            return onnx_runner(plain)
        return onnx_runner(quantize_int8(plain, folder / "model-int8.onnx"))


def block_times(
    model: PreTrainedModel,
    clock: Seconds,
    least: int,
    progress: Progress,
) -> tuple[float, Callable[[int, int], float]]:
    """Seconds outside the blocks, and a block's by its heads and neurons: the rising line that is
    nearest to a few measured shapes; the smallest have one head or `least` neurons."""
    own = sizes(model)
    heads, neurons, layers = max(own.heads), max(own.neurons), len(own.heads)
    counts = sorted({layers, max(1, layers // 3)})
    shapes = sorted({(heads, neurons), (1, neurons), (heads, min(least, neurons))})
    models = [_shaped(model, count, *shape) for shape in shapes for count in counts]
    with progress.stage("timing blocks", len(models), "models") as advance:
        seconds = clock(models)
        advance(len(models))
    each = [(1.0, count, count * h, count * n) for h, n in shapes for count in counts]
    (fixed, constant, by_head, by_neuron), _ = nnls(np.array(each), np.array(seconds))

    def block(heads: int, neurons: int) -> float:
        return float(max(constant + by_head * heads + by_neuron * neurons, 1e-9))

    return float(fixed), block


def _shaped(model: PreTrainedModel, layers: int, heads: int, neurons: int) -> PreTrainedModel:
    """The first layers, with so many heads and neurons each: for timing only."""
    own = sizes(model)
    return cut(
        model,
        [
            Kept(
                k,
                tuple(range(min(heads, own.heads[k - 1]))),
                tuple(range(min(neurons, own.neurons[k - 1]))),
            )
            for k in range(1, layers + 1)
        ],
    )
