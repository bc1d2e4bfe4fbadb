"""LeNet-300-100 on MNIST, after Frankle & Carbin 2019, "The Lottery Ticket Hypothesis", sec. 2.

    command   STILLHOUSE_DATA=/path/to/data python recipes/lenet_tickets.py --out runs/lenet
              (the four IDX files of MNIST in $STILLHOUSE_DATA/mnist, or in --data)
              the paper's length: --set iterations=50000
    hardware  two CPU cores
    time      about 90 minutes for --set iterations=12000 on one thread
    result    at 21 % of the weights the early stop is 55 % earlier than dense; see docs/results.md

As in the ICLR version: 784-300-100-10, Glorot's normal weights, Adam at 1.2e-3, batches of 60,
5,000 random training images for validation, evaluated every 100 iterations; each round prunes
20 % of each layer's weights by magnitude (10 % of the output layer's) and resets the rest; five
trials. The early-stop iteration is that of the least validation loss, found afterwards.

Beside each trial's ticket: its mask on fresh weights (the paper has three draws a trial, here
`redraws`), and a random mask of the same density in each layer with the trial's own first weights.

What the paper does not say and we took: pixels are standardised with the training images' mean
and deviation; a trial's networks see its images in one order, in every round. What is cut: the
iterations. All trials and controls of a round are trained side by side as one model.

A killed run goes on where it was.
"""

# M members, B examples of each, N images, D pixels, K classes, E evaluations.

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from stillhouse.core.config import TrainingConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import StillhouseError, UsageError
from stillhouse.core.manifest import manifest
from stillhouse.core.progress import Progress
from stillhouse.core.rundir import claim, write_json, write_text
from stillhouse.core.seeding import derive, generator
from stillhouse.core.settings import override, parse
from stillhouse.core.terms import Config, TermConfig
from stillhouse.core.types import Batch, LoopState, StudentOutput
from stillhouse.models.batched import BatchedMLP
from stillhouse.numerics import masks as numerics
from stillhouse.tasks.vectors import read_idx
from stillhouse.tickets.config import PruneConfig
from stillhouse.tickets.prune import counts, next_masks
from stillhouse.training import checkpoint
from stillhouse.training.callbacks import advancing
from stillhouse.training.loop import fit
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.objective import build
from stillhouse.training.sparse import load_masks, save_masks

LAYERS = ("weights.0", "weights.1", "weights.2")
OUTPUT = LAYERS[-1]
KINDS = ("ticket", "reinitialised", "random")


class Settings(Config):
    """Everything that changes a training."""

    iterations: int = 20_000
    every: int = 100
    rounds: int = 20
    rate: float = 0.2
    trials: int = 5
    redraws: int = 1
    widths: tuple[int, ...] = (300, 100)
    validation: int = 5000
    batch_size: int = 60
    lr: float = 1.2e-3


QUICK = ["iterations=300", "rounds=4", "trials=2", "validation=1000"]


@dataclass(frozen=True)
class Digits:
    """All images, standardised, their labels, and which of the training images each trial trains
    and validates on."""

    images_ND: Tensor
    labels_N: Tensor
    test_ND: Tensor
    test_labels_N: Tensor
    train: list[np.ndarray]
    validation: list[np.ndarray]


@dataclass(frozen=True)
class Member:
    """One network of a round: what kind, whose trial, which draw of fresh weights or mask."""

    kind: str
    trial: int
    draw: int = 0


def read_digits(folder: Path, settings: Settings) -> Digits:
    images_NHW = read_idx(folder / "train-images-idx3-ubyte.gz")
    labels_N = read_idx(folder / "train-labels-idx1-ubyte.gz")
    test_NHW = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    test_labels_N = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    mean, deviation = images_NHW.mean() / 255, images_NHW.std() / 255

    def standard(values: np.ndarray) -> Tensor:
        flat = values.reshape(len(values), -1).astype(np.float32) / 255
        return torch.from_numpy(((flat - mean) / deviation).astype(np.float32))

    if settings.validation >= len(labels_N):
        raise UsageError(f"{settings.validation} images can't be kept of {len(labels_N)}")
    orders = [
        generator(trial, "validation images").permutation(len(labels_N))
        for trial in range(settings.trials)
    ]
    return Digits(
        standard(images_NHW),
        torch.from_numpy(labels_N.astype(np.int64)),
        standard(test_NHW),
        torch.from_numpy(test_labels_N.astype(np.int64)),
        train=[order[settings.validation :] for order in orders],
        validation=[np.sort(order[: settings.validation]) for order in orders],
    )


class Orders:
    """The training images as the members see them: those of its trial, in its trial's order (a
    shuffle of an order of its own)."""

    def __init__(self, digits: Digits, members: list[Member]) -> None:
        self.digits = digits
        self.rows_MN = np.stack([digits.train[member.trial] for member in members])
        count = self.rows_MN.shape[1]
        self.lengths = np.ones(count, np.int64)
        self.keys_N2 = np.zeros((count, 2), "<u8")
        self.gold_N = torch.zeros(count, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        del rng  # nothing is drawn
        places = torch.from_numpy(self.rows_MN[:, rows].reshape(-1))
        images, labels = self.digits.images_ND[places], self.digits.labels_N[places]
        return Batch({"vectors": images}, rows, labels)

    def places(self, rows: np.ndarray) -> np.ndarray:
        return rows


# ---- one round


def scores(weights: list[Tensor], biases: list[Tensor], images_ND: Tensor) -> Tensor:
    """M x N x K: what members answer to the same images; the first layer is one product."""
    members, width, inputs = weights[0].shape
    joint = images_ND @ weights[0].reshape(-1, inputs).T + biases[0].reshape(-1)
    x_MNH = joint.view(len(images_ND), members, width).transpose(0, 1).relu()
    for number, (w, b) in enumerate(zip(weights[1:], biases[1:], strict=True), start=2):
        x_MNH = torch.baddbmm(b[:, None], x_MNH, w.transpose(1, 2))
        if number < len(weights):
            x_MNH = x_MNH.relu()
    return x_MNH


class Early(nn.Module):
    """Each member's weights at its least validation loss so far, beside the weights that train:
    buffers, so that a checkpoint has them."""

    def __init__(self, model: BatchedMLP, members: list[Member], digits: Digits) -> None:
        super().__init__()
        self.members, self.digits = members, digits
        self.register_buffer("loss", torch.full((len(members),), torch.inf))
        self.register_buffer("step", torch.zeros(len(members), dtype=torch.long))
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", "_"), parameter.detach().clone())

    @torch.no_grad()
    def look(self, model: BatchedMLP, step: int) -> list[float]:
        """Validation losses of all members now; keeps the weights of those that got better."""
        losses = torch.empty(len(self.members))
        for trial in sorted({member.trial for member in self.members}):
            mine = [i for i, member in enumerate(self.members) if member.trial == trial]
            rows = torch.from_numpy(self.digits.validation[trial])
            found_MNK = scores([w[mine] for w in model.weights], [b[mine] for b in model.biases],
                               self.digits.images_ND[rows])  # fmt: skip
            gold_N = self.digits.labels_N[rows]
            logp_MN = found_MNK.log_softmax(-1)[:, torch.arange(len(rows)), gold_N]
            losses[mine] = -logp_MN.mean(1)
        held: Any = self
        better = losses < held.loss
        held.loss[better], held.step[better] = losses[better], step
        for name, parameter in model.named_parameters():
            getattr(self, name.replace(".", "_"))[better] = parameter[better]
        return losses.tolist()

    def of(self, kind: str) -> list[Tensor]:
        return [getattr(self, f"{kind}_{number}") for number in range(len(LAYERS))]


def begin(members: list[Member], settings: Settings, inputs: int) -> BatchedMLP:
    """The round's networks with their first weights: the trial's own, or a fresh draw's."""
    model = BatchedMLP(len(members), (inputs, *settings.widths, 10))
    for place, member in enumerate(members):
        purpose = ("fresh", member.draw) if member.kind == "reinitialised" else ("first",)
        model.draw(place, derive(member.trial, *purpose) % 2**63)
    return model


def train_round(number: int, members: list[Member], masks: dict[str, Tensor], digits: Digits,
                settings: Settings, out: Path, progress: Progress) -> dict[str, Any]:  # fmt: skip
    """Trains all members of a round, or reads what they came to: test accuracy at the end and at
    the early stop, that step, its loss, and the final weights' magnitudes of tickets."""
    done = out / "rounds" / f"{number}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    model = begin(members, settings, digits.images_ND.shape[1])
    early = Early(model, members, digits)
    model.add_module("early", early)
    log = MetricsLog(out / "metrics.jsonl", run=f"round {number}")

    def watch(state: LoopState) -> None:
        if state.step % settings.every == 0:
            log.write(step=state.step, event="validate", losses=early.look(model, state.step))

    config = TrainingConfig(
        steps=settings.iterations, batch_size=settings.batch_size, lr=settings.lr, warmup=0.0,
        decay="constant", weight_decay=0.0, clip=None, precision="float32", embeddings="dense",
        select="last", log_every=1000, max_tokens=2**20,
    )  # fmt: skip
    half = out / "rounds" / f"{number}.partial.safetensors"
    goal = build([TermConfig(kind="gold")], choices=10, signal=None, has_gold=True)
    title = f"round {number}, {len(members)} networks side by side"
    with progress.stage(title, settings.iterations, "iterations") as advance:
        result = fit(
            model, Orders(digits, members), goal, None, config, seed=0, forward=forward,
            log=log, resume=half, masks=masks, callbacks=[watch, advancing(advance)],
        )  # fmt: skip
    tickets = [place for place, member in enumerate(members) if member.kind in ("dense", "ticket")]
    weights = {name: dict(model.named_parameters())[name].detach()[tickets] for name in LAYERS}
    checkpoint.save(out / "rounds" / f"{number}.safetensors", weights, {})
    held: Any = early
    with torch.no_grad():
        last = right(scores(list(model.weights), list(model.biases), digits.test_ND), digits)
        at_stop = scores(early.of("weights"), early.of("biases"), digits.test_ND)
        stopped = right(at_stop, digits)
    found = {
        "members": [vars(member) for member in members],
        "kept": [[int(mask[place].sum()) for mask in masks.values()] if masks else None
                 for place in range(len(members))],
        "stop": held.step.tolist(), "loss": held.loss.tolist(), "at_stop": stopped, "at_end": last,
        "seconds": round(result.seconds, 1),
    }  # fmt: skip
    write_json(done, found)
    half.unlink(missing_ok=True)
    return found


def forward(model: nn.Module, batch: Batch, rng: np.random.Generator) -> StudentOutput:
    return StudentOutput(model(batch.inputs["vectors"]))


def right(scores_MNK: Tensor, digits: Digits) -> list[float]:
    """Each member's test accuracy."""
    return (scores_MNK.argmax(-1) == digits.test_labels_N).float().mean(1).tolist()


# ---- from round to round


def members_of(number: int, settings: Settings) -> list[Member]:
    trials = range(settings.trials)
    if number == 0:
        return [Member("dense", trial) for trial in trials]
    fresh = [Member("reinitialised", t, d) for t in trials for d in range(settings.redraws)]
    return [*(Member("ticket", t) for t in trials), *fresh, *(Member("random", t) for t in trials)]


def tickets_of(number: int, settings: Settings, inputs: int, out: Path) -> dict[str, Tensor]:
    """The trials' masks for a round (trials x out x in), from disk or from the round before."""
    path = out / "masks" / f"{number}.safetensors"
    if path.exists():
        return load_masks(path)[0]
    found = checkpoint.load(out / "rounds" / f"{number - 1}.safetensors")
    assert found is not None, "the round before is done"
    before = tickets_of(number - 1, settings, inputs, out) if number > 1 else {
        name: torch.ones_like(weight, dtype=torch.bool) for name, weight in found[0].items()
    }  # fmt: skip
    plan = PruneConfig(
        sparsity=1 - (1 - settings.rate) ** settings.rounds, rounds=settings.rounds, scope="layer"
    )
    sizes = {name: mask[0].numel() for name, mask in before.items()}
    made = [
        next_masks(
            {name: found[0][name][trial].abs() for name in LAYERS},
            {name: before[name][trial] for name in LAYERS},
            {OUTPUT}, counts(sizes, {OUTPUT}, plan)[number - 1], scope="layer",
            rng=generator(trial, "ties", number),
        )
        for trial in range(settings.trials)
    ]  # fmt: skip
    masks = {name: torch.stack([each[name] for each in made]) for name in LAYERS}
    save_masks(path, masks)
    return masks


def masks_of(number: int, members: list[Member], tickets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every member's mask: its trial's ticket, or a random one of the same density."""
    found: dict[str, list[Tensor]] = {name: [] for name in tickets}
    for member in members:
        own = {name: mask[member.trial] for name, mask in tickets.items()}
        if member.kind == "random":
            own = numerics.random_like(own, generator(member.trial, "random mask", number))
        for name, mask in own.items():
            found[name].append(mask)
    return {name: torch.stack(each) for name, each in found.items()}


def run(settings: Settings, folder: Path, out: Path, *, progress: Progress) -> dict[str, Any]:
    """All rounds; writes results.json and results.md into `out`."""
    digits = read_digits(folder, settings)
    claim(out, settings.model_dump(mode="json"))
    inputs = digits.images_ND.shape[1]
    rounds = []
    for number in range(settings.rounds + 1):
        members, masks = members_of(number, settings), {}
        if number:
            masks = masks_of(number, members, tickets_of(number, settings, inputs, out))
        rounds.append(train_round(number, members, masks, digits, settings, out, progress))
    whole = inputs * settings.widths[0] + settings.widths[0] * settings.widths[1]
    rows = rows_of(rounds, whole + settings.widths[1] * 10)
    results = {"rows": rows, "claims": claims(rows), "seconds": [r["seconds"] for r in rounds],
               "settings": settings.model_dump(mode="json"), **manifest()}  # fmt: skip
    write_json(out / "results.json", results)
    write_text(out / "results.md", table(rows) + "\n" + "\n".join(claims(rows)) + "\n")
    return results


# ---- results


def spread(values: list[float]) -> tuple[float, float, float]:
    """Mean over trials and its 95 % interval (Student's t)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1))
    half /= float(np.sqrt(len(values)))
    return mean, mean - half, mean + half


def rows_of(rounds: list[dict[str, Any]], whole: int) -> list[dict[str, Any]]:
    """A row for each kind of each round: means over trials, of a trial's draws first."""
    rows: list[dict[str, Any]] = []
    for number, found in enumerate(rounds):
        kinds = list(dict.fromkeys(member["kind"] for member in found["members"]))
        for kind in kinds:
            mine = [i for i, member in enumerate(found["members"]) if member["kind"] == kind]
            kept = found["kept"][mine[0]]
            share = 1.0 if kept is None else sum(kept) / whole
            row: dict[str, Any] = {"round": number, "kind": kind, "remaining": share}
            for name in ("stop", "loss", "at_stop", "at_end"):
                by_trial: dict[int, list[float]] = {}
                for i in mine:
                    by_trial.setdefault(found["members"][i]["trial"], []).append(found[name][i])
                row[name] = [float(np.mean(each)) for _, each in sorted(by_trial.items())]
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, means over trials and their 95 % intervals."""
    lines = [
        "| weights | model | early-stop iteration | test accuracy there, % | at the end, % |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        stop, low, high = spread(row["stop"])
        cells = [f"{stop:,.0f} ({low:,.0f} to {high:,.0f})"]
        for name in ("at_stop", "at_end"):
            mean, low, high = (100 * value for value in spread(row[name]))
            cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {100 * row['remaining']:.1f} % | {row['kind']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claims(rows: list[dict[str, Any]]) -> list[str]:
    """The paper's claims, each beside what was seen; differences are paired by trial."""
    dense = rows[0]
    said = [f"Trials: {len(dense['stop'])}. Differences are paired by trial, 95 % intervals."]

    def at(kind: str, remaining: float) -> dict[str, Any] | None:
        near = [r for r in rows if r["kind"] == kind and abs(r["remaining"] - remaining) < 0.004]
        return near[0] if near else None

    def change(mine: dict[str, Any], theirs: dict[str, Any], name: str) -> str:
        pairs = zip(mine[name], theirs[name], strict=True)
        mean, low, high = (100 * v for v in spread([a - b for a, b in pairs]))
        return f"{mean:+.2f} points ({low:+.2f} to {high:+.2f})"

    if (ticket := at("ticket", 0.211)) is not None:
        pairs = zip(ticket["stop"], dense["stop"], strict=True)
        mean, low, high = (100 * v for v in spread([1 - a / b for a, b in pairs]))
        said.append(f"21.1 %: early stop {mean:.0f} % earlier than dense "
                    f"({low:.0f} to {high:.0f}); the paper has 38 %.")  # fmt: skip
        other = at("reinitialised", 0.211)
        assert other is not None
        ratio = spread([b / a for a, b in zip(ticket["stop"], other["stop"], strict=True)])
        said.append(f"21.1 %: on fresh weights the early stop is {ratio[0]:.2f} times as late "
                    f"({ratio[1]:.2f} to {ratio[2]:.2f}); the paper has 2.51. Ticket minus fresh: "
                    f"{change(ticket, other, 'at_stop')}; the paper has half a point.")  # fmt: skip
    if (ticket := at("ticket", 0.135)) is not None:
        said.append(f"13.5 %: ticket minus dense {change(ticket, dense, 'at_stop')}; the paper has "
                    "more than +0.3.")  # fmt: skip
    if (ticket := at("ticket", 0.036)) is not None:
        said.append(f"3.6 %: ticket minus dense {change(ticket, dense, 'at_stop')}; the paper has "
                    "the dense model's level.")  # fmt: skip
    worse = [
        (a, b)
        for a, b in itertools.product(rows, rows)
        if (a["kind"], b["kind"]) == ("ticket", "reinitialised") and a["round"] == b["round"]
    ]
    lower = sum(float(np.mean(a["at_stop"])) > float(np.mean(b["at_stop"])) for a, b in worse)
    said.append(f"The ticket on fresh weights scores lower than the ticket at {lower} of "
                f"{len(worse)} levels.")  # fmt: skip
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder with MNIST's four files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a few rounds of 300 iterations")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    try:
        folder = args.data or Path(os.environ.get("STILLHOUSE_DATA", "")) / "mnist"
        if not (folder / "train-images-idx3-ubyte.gz").is_file():
            raise UsageError(f"{folder} has no MNIST files: give their folder with --data")
        values = Settings().model_dump(mode="json")
        settings = parse(
            Settings, override(values, [*(QUICK if args.quick else []), *args.changes])
        )
        run(settings, folder, args.out, progress=Terminal())
        print((args.out / "results.md").read_text(encoding="utf-8"))
    except StillhouseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
