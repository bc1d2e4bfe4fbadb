"""What it costs to hold a mask: a masked training step beside a dense one.

    python benchmarks/masked_step.py --out masked-step.json

MiniLM with all its usual matrices at 30 % density, and LeNet-300-100, as tickets train them: the
same batches and optimiser, masked and dense steps in turns, a few of each at a time. The ratio is
of medians over turns; its interval is bootstrapped over pairs of neighbouring turns.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from stillhouse.core.config import TrainingConfig
from stillhouse.core.manifest import manifest
from stillhouse.core.rundir import write_json
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, StudentOutput
from stillhouse.models.builtin import minilm
from stillhouse.models.forward import training_mode
from stillhouse.models.masks import apply_masks
from stillhouse.models.mlp import MLPClassifier, MLPConfig
from stillhouse.tickets.prunable import prunable
from stillhouse.training.objective import build
from stillhouse.training.optim import Optimizer
from stillhouse.training.steps import TextForward, leaves_of, plain_step

PER_TURN = 4
GOAL = 1.03


class Contender:
    """A model with its own optimiser, stepped on the given batches."""

    def __init__(self, model: nn.Module, forward: Any, config: TrainingConfig,
                 masks: Mapping[str, Tensor]) -> None:  # fmt: skip
        self.model, self.forward = model, forward
        self.objective = build([TermConfig(kind="gold")], choices=10, signal=None, has_gold=True)
        masks = apply_masks(model, masks)
        self._mode = training_mode(model, on=True)
        self._leaves = leaves_of(forward, model, masks)
        self._mode.__enter__()
        self.optimizer = Optimizer(model, config, self._leaves.__enter__())

    def __call__(self, batches: list[Batch]) -> float:
        """Seconds a step."""
        started = time.perf_counter()
        for i, batch in enumerate(batches):
            count = len(batch.rows)
            plain_step(
                self.model, [batch], self.objective, None, self.forward, progress=0.0,
                rngs=[np.random.default_rng(i)], norms=False, parameters=self.optimizer.parameters,
                totals={"examples": count, "scored": count},
            )  # fmt: skip
            self.optimizer.clip()
            self.optimizer.step(1e-5)
        return (time.perf_counter() - started) / len(batches)


def measured(make: Callable[[bool], Contender], batches: list[Batch], turns: int) -> dict[str, Any]:
    """Medians of a masked and a dense contender, and the interval of their ratio."""
    pair = {"dense": make(False), "masked": make(True)}
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    for turn in range(turns + 2):
        chosen = [batches[(turn * PER_TURN + i) % len(batches)] for i in range(PER_TURN)]
        for name in sorted(pair, reverse=bool(turn % 2)):
            took = pair[name](chosen)
            if turn >= 2:  # the first are a warm-up
                seconds[name].append(took)
    dense, masked = (np.array(seconds[name]) for name in ("dense", "masked"))
    draws = np.random.default_rng(0).integers(0, turns, (2000, turns))
    ratios = np.median(masked[draws], 1) / np.median(dense[draws], 1)
    return {
        "dense_ms": 1e3 * float(np.median(dense)),
        "masked_ms": 1e3 * float(np.median(masked)),
        "ratio": float(np.median(masked) / np.median(dense)),
        "interval": np.quantile(ratios, [0.025, 0.975]).tolist(),
    }


def thirty_percent(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.rand(w.shape, generator=draw) < 0.3 for name, w in weights.items()}


def encoder() -> tuple[Callable[[bool], Contender], list[Batch]]:
    whole: Any = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=10)
    draw = torch.Generator().manual_seed(0)
    batches = []
    for length in range(16, 49, 4):
        ids = torch.randint(1000, 20_000, (32, length), generator=draw)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batches.append(Batch(inputs, np.arange(32), torch.randint(10, (32,), generator=draw)))
    config = TrainingConfig()

    def make(held: bool) -> Contender:
        model = copy.deepcopy(whole)
        masks = thirty_percent(prunable(model)) if held else {}
        return Contender(model, TextForward(config), config, masks)

    return make, batches


def lenet() -> tuple[Callable[[bool], Contender], list[Batch]]:
    draw = torch.Generator().manual_seed(0)
    batches = [
        Batch({"vectors": torch.randn(60, 784, generator=draw)}, np.arange(60),
              torch.randint(10, (60,), generator=draw))
        for _ in range(8)
    ]  # fmt: skip
    config = TrainingConfig(precision="float32", weight_decay=0.0, clip=None, embeddings="dense")

    def forward(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        return StudentOutput(model(batch.inputs["vectors"]).logits)

    def make(held: bool) -> Contender:
        torch.manual_seed(0)
        model = MLPClassifier(MLPConfig(784, (300, 100), num_labels=10))
        masks = thirty_percent({n: p for n, p in model.named_parameters() if p.ndim == 2})
        return Contender(model, forward, config, masks if held else {})

    return make, batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = {}
    for name, (make, batches) in {"MiniLM": encoder(), "LeNet-300-100": lenet()}.items():
        found[name] = measured(make, batches, args.turns)
        mine = found[name]
        low, high = mine["interval"]
        print(
            f"{name}: dense {mine['dense_ms']:.2f} ms, masked {mine['masked_ms']:.2f} ms, "
            f"{mine['ratio']:.3f} times ({low:.3f} to {high:.3f}); goal at most {GOAL}"
        )
    write_json(args.out, {"found": found, **manifest()})


if __name__ == "__main__":
    main()
