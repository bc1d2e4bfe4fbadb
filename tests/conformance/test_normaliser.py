"""Row: normaliser wrong under accumulation, micro-batches, data parallel. Loss and gradient do not
change with micro-batch split, padding or world size.

Axes: N rows, K choices.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import killing
import tiny
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, StudentOutput
from stillhouse.tasks.base import Dataset
from stillhouse.training.objective import Objective, build
from stillhouse.training.steps import StepStats, plain_step

TERMS = [
    tiny.soft(weight=0.7, temperature=2.0),
    tiny.soft("reverse_kl", weight=0.2),
    TermConfig(kind="hard", weight=0.05),
    TermConfig(kind="gold", weight=0.3),
]
ROWS = 24
SPLITS = {
    "four": np.array_split(np.arange(ROWS), 4),
    "uneven": np.split(np.arange(ROWS), [1, 4, 20]),
    "one a batch": np.split(np.arange(ROWS), ROWS),
    "shuffled": np.array_split(np.random.default_rng(0).permutation(ROWS), 3),
}


def objective(choices: int) -> Objective:
    return build(TERMS, choices=choices, signal=Dense, has_gold=True)


def teacher(choices: int) -> tiny.Fixed:
    return tiny.Fixed(2 * torch.randn(ROWS, choices, generator=torch.Generator().manual_seed(1)))


def step(
    model: nn.Module, data: Dataset, parts: Sequence[np.ndarray], forward: Any, choices: int
) -> tuple[StepStats, dict[str, Tensor]]:
    model.zero_grad()
    stats = plain_step(
        model,
        [data.batch(rows) for rows in parts],
        objective(choices),
        teacher(choices),
        forward,
        progress=0.5,
        rngs=[np.random.default_rng(0) for _ in parts],
        totals={"examples": ROWS, "scored": ROWS},
        norms=True,
    )
    return stats, {name: p.grad.clone() for name, p in model.named_parameters()}


def alike(
    one: tuple[StepStats, dict[str, Tensor]],
    other: tuple[StepStats, dict[str, Tensor]],
    tolerance: float,
) -> None:
    close = {"atol": tolerance, "rtol": tolerance}
    for name, gradient in one[1].items():
        torch.testing.assert_close(other[1][name], gradient, **close, msg=name)
    torch.testing.assert_close(other[0].loss, one[0].loss, atol=1e-6, rtol=1e-6)
    for found in ("values", "gradient_norms"):
        mine, theirs = getattr(one[0], found), getattr(other[0], found)
        assert mine.keys() == theirs.keys() == {"soft", "soft-2", "hard", "gold"}
        for name in mine:
            torch.testing.assert_close(theirs[name], mine[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("split", SPLITS)
def test_a_step_does_not_change_with_its_micro_batches(split: str) -> None:
    """A third of the rows has no label; some micro-batches have none at all."""
    data = tiny.vectors(ROWS, unlabelled=[0, 1, 2, 3, 9, 15, 16, 23])
    model = tiny.Line(5, 3)
    whole = step(model, data, [np.arange(ROWS)], tiny.line_forward, 3)
    alike(whole, step(model, data, SPLITS[split], tiny.line_forward, 3), 1e-12)
    assert whole[0].loss > 0.1


def test_a_step_is_the_mean_over_its_rows() -> None:
    """By hand: each term summed row by row, divided by all rows once."""
    data = tiny.vectors(ROWS, unlabelled=[0, 5, 6])
    model = tiny.Line(5, 3)
    stats, gradients = step(model, data, SPLITS["uneven"], tiny.line_forward, 3)
    scores_NK = model(data.source.inputs(np.arange(ROWS))["vectors"])
    theirs_NK = teacher(3).scores_NK.double()
    p, logq = (theirs_NK / 2).softmax(-1), (scores_NK / 2).log_softmax(-1)
    soft = 4 * (p * (p.log() - logq)).sum()
    q, logp = scores_NK.softmax(-1), theirs_NK.log_softmax(-1)
    reverse = (q * (scores_NK.log_softmax(-1) - logp)).sum()
    entropy = torch.nn.functional.cross_entropy
    hard = entropy(scores_NK, theirs_NK.argmax(-1), reduction="sum")
    gold = entropy(scores_NK, data.gold_N, ignore_index=-100, reduction="sum")
    loss = (0.7 * soft + 0.2 * reverse + 0.05 * hard + 0.3 * gold) / ROWS
    assert stats.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    (expected,) = torch.autograd.grad(loss, [model.weight])
    torch.testing.assert_close(gradients["weight"], expected, atol=1e-7, rtol=1e-6)


class Padded:
    """Texts padded to the longest of a batch and `extra` more."""

    def __init__(self, kind: str, extra: int) -> None:
        self.tokenizer, self.extra = tiny.tokenizer(kind), extra
        self.texts = [text for text, _ in tiny.sentences(ROWS)]
        self.lengths = np.array([len(ids) for ids in self.tokenizer(self.texts)["input_ids"]])

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        longest = int(self.lengths[rows].max()) + self.extra
        return dict(
            self.tokenizer(
                [self.texts[i] for i in rows],
                padding="max_length",
                max_length=longest,
                return_tensors="pt",
            )
        )


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("split", ["four", "one a batch"])
def test_a_step_does_not_change_with_padding(kind: str, split: str) -> None:
    from stillhouse.models.forward import scores

    model = tiny.model(kind, dropout=0.0)
    gold_N = torch.arange(ROWS) % 2
    gold_N[:7] = -100
    keys_N2 = np.zeros((ROWS, 2), "<u8")

    def forward(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
        return StudentOutput(scores(model, batch.inputs, precision="float32", rng=rng))

    data = [Dataset(Padded(kind, extra), keys_N2, gold_N) for extra in (0, 11)]
    parts = {0: [np.arange(ROWS)], 1: SPLITS[split]}
    found = [step(model, d, parts[i], forward, 2) for i, d in enumerate(data)]
    alike(found[0], found[1], 2e-5)


WORLD = """
import json, os, sys
os.environ.update(json.loads(sys.argv[2]), ACCELERATE_USE_CPU="true")
print("ready", flush=True)
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
import tiny
from stillhouse.core.config import TermConfig, TrainingConfig
from stillhouse.core.types import Dense
from stillhouse.training.loop import fit
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.steps import TextForward
from stillhouse.training.objective import build
from test_normaliser import ROWS, Padded, objective, teacher
from pathlib import Path
import numpy as np
from stillhouse.tasks.base import Dataset
torch.set_num_threads(1)
out = Path(sys.argv[1])
gold_N = torch.arange(ROWS) % 2
gold_N[:7] = -100
data = Dataset(Padded("bert", 0), np.zeros((ROWS, 2), "<u8"), gold_N)
for embeddings in ("rows", "dense", "frozen"):
    config = TrainingConfig(steps=6, batch_size=5, accumulation=2, lr=1e-2, log_every=1,
                            precision="float32", embeddings=embeddings, weight_decay=0.1)
    model = tiny.model(dropout=0.0)
    accelerator = Accelerator(cpu=True)
    fit(model, data, objective(2), teacher(2), config, seed=0, forward=TextForward(config),
        log=MetricsLog(out / f"{embeddings}.jsonl"), accelerator=accelerator)
    if accelerator.is_main_process:
        save_file(model.state_dict(), out / f"{embeddings}.safetensors")
if accelerator.num_processes > 1:
    torch.distributed.destroy_process_group()
"""


def in_a_world_of(size: int, out: Path) -> None:
    """The same training on `size` processes."""
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        environment = {}
        if size > 1:
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        processes.append(killing.fork(WORLD, str(out), json.dumps(environment)))
    assert [process.end() for process in processes] == [0] * size


@pytest.mark.slow
def test_a_training_does_not_change_with_world_size(tmp_path: Path) -> None:
    """A last batch of odd size, a batch of one row among them: some process has none of it."""
    for size in (1, 2):
        in_a_world_of(size, tmp_path / str(size))
    for embeddings in ("rows", "dense", "frozen"):
        one, two = (load_file(tmp_path / n / f"{embeddings}.safetensors") for n in "12")
        for name, tensor in one.items():
            if name.endswith("key.bias"):  # no gradient but rounding, which AdamW makes steps of
                continue
            torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
        logs = [(tmp_path / n / f"{embeddings}.jsonl").read_text().splitlines() for n in "12"]
        assert len(logs[0]) == len(logs[1]) == 6
        for lines in zip(*logs, strict=True):
            alone, spread = (json.loads(line) for line in lines)
            for key in ("loss", "gradient_norm"):
                assert spread[key] == pytest.approx(alone[key], rel=1e-3)
            for term in alone["terms"]:
                found, expected = spread["terms"][term], alone["terms"][term]
                assert found["value"] == pytest.approx(expected["value"], rel=1e-3)
