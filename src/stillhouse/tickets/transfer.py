"""The tickets of some tasks, trained on the others: transfer(S, T).

Chen et al. 2020 (BERT-Tickets), sec. 4: the source's mask on the target's first weights, the
target's own fresh head and training. Beside it the target's own ticket, transfer(T, T), and its
dense model.

Axes: N rows.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from stillhouse.core.errors import UsageError
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import claim, write_json
from stillhouse.core.seeding import generator
from stillhouse.core.settings import parse, read_yaml
from stillhouse.core.ticket_results import Cell, TicketTiming, TransferRecord
from stillhouse.evaluation.comparison import Comparison, compare
from stillhouse.evaluation.evaluate import groups_of, interval
from stillhouse.flows.gold import Gold, prepare_gold
from stillhouse.numerics import masks as numerics
from stillhouse.tickets.config import TicketsConfig, TransferConfig
from stillhouse.tickets.search import Search, masks_path
from stillhouse.training.sparse import fitting, load_masks

LIKE = 0.01  # shares of weights that differ by less are of one sparsity
NEAR = 0.002  # means over targets that differ by less are not told apart
BROKEN = 0.1  # of the metric, below the dense model
Answers = dict[int, np.ndarray]  # a model's scores of the reported rows, by seed


@dataclass
class Ticketed:
    """A finished search, as source and target. `masks`: of its last round, by seed."""

    name: str
    folder: Path
    config: TicketsConfig
    gold: Gold
    search: Search
    masks: Mapping[int, Mapping[str, Tensor]]

    def answers(self, kind: str, number: int, seeds: Sequence[int]) -> Answers:
        """What the search's own models answered."""
        held = load_file(self.folder / "answers.safetensors")
        return {seed: held[f"{kind}-{number}|{seed}"].numpy() for seed in seeds}


def transfer(
    config: TransferConfig, out: Path, *, progress: Progress | None = None
) -> TransferRecord:
    """Trains every source's ticket on every other's task, in the run folder `out`; a transfer that
    was killed goes on where it was. Raises UsageError, ModelError, RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    runs = [opened(Path(run), out, progress) for run in config.runs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UsageError(f"two of the runs have one name: {', '.join(names)}; rename a folder")
    seeds = _shared_seeds(runs, config)
    for source in runs:
        for target in runs:
            _fitted(source, target, seeds[0])
        _check_alike(runs[0], source, seeds[0])
    claim(out, config.model_dump(mode="json"), _content(runs))
    became = {run.name: run.config.training.precision for run in runs}
    if len(set(became.values())) > 1:
        listed = ", ".join(f"{name} in {precision}" for name, precision in became.items())
        progress.note(f"each task is trained as its own search was: {listed}")
    facts = {"content": _content(runs), "seeds": seeds, "precisions": became}
    write_json(out / "manifest.json", manifest(**facts))
    cells: list[Cell] = []
    steps = 0
    for target in runs:
        own = target.answers("ticket", target.config.prune.rounds, seeds)
        for source in runs:
            found = own
            if source is not target:
                found = {}
                for seed in seeds:
                    title = f"{source.name}-on-{target.name}"
                    masks = _fitted(source, target, seed)
                    trained = target.search.train_masked(title, seed, masks)
                    found[seed] = trained.scores_NK
                    steps += trained.fit.steps
            judged = {"margin": config.margin, "resamples": config.resamples}
            cells.append(_cell(source, target, found, own, seeds, **judged))
    dense = [_score(run, run.answers("dense", 0, seeds)) for run in runs]
    means = [float(np.mean(each)) for each in dense]
    return TransferRecord(
        names=names,
        metrics=[run.gold.task.metric for run in runs],
        remaining=[numerics.density(run.masks[seeds[0]]) for run in runs],
        dense=means,
        cells=cells,
        overlaps=_overlaps(runs, seeds),
        sentence=_sentence(names, cells),
        warnings=[*_unlike(cells), *_broken(cells, means)],
        timing=TicketTiming(total_s=time.perf_counter() - started, steps=steps),
    )


def content_of(config: TransferConfig, out: Path) -> dict[str, str]:
    """Fingerprints of what a transfer's runs were made of and found."""
    return _content([opened(Path(run), out, Silent()) for run in config.runs])


def opened(folder: Path, out: Path, progress: Progress) -> Ticketed:
    """A finished search. Raises UsageError if there is none in `folder`."""
    if not (folder / "record.json").is_file() or not (folder / "answers.safetensors").is_file():
        raise UsageError(f"{folder} is no finished search for tickets: run tickets find first")
    config = Auto.of(folder).settle(parse(TicketsConfig, read_yaml(folder / "config.yaml")))
    gold = prepare_gold(config, progress, metric=config.evaluation.metric)
    search = Search(config, gold, out, progress, theta=folder)
    last = config.prune.rounds
    masks = {
        seed: load_masks(masks_path(folder, seed, last))[0] for seed in config.evaluation.seeds
    }
    return Ticketed(folder.resolve().name, folder, config, gold, search, masks)


def _shared_seeds(runs: Sequence[Ticketed], config: TransferConfig) -> list[int]:
    """The seeds to transfer with. Raises UsageError where a run lacks one, or none is shared."""
    shared = set.intersection(*(set(run.masks) for run in runs))
    seeds = sorted(shared) if config.seeds is None else config.seeds
    if not seeds or not set(seeds) <= shared:
        raise UsageError(
            f"the runs share the seeds {', '.join(map(str, sorted(shared))) or '(none)'}: "
            "transfer with these"
        )
    return seeds


def _fitted(source: Ticketed, target: Ticketed, seed: int) -> dict[str, Tensor]:
    """The source's masks that the target's model has weights for."""
    model = target.gold.make(seed)
    return fitting(source.masks[seed], model, str(source.folder))


def _check_alike(first: Ticketed, run: Ticketed, seed: int) -> None:
    """Raises UsageError for tickets that can't be compared: found without rewinding, of another
    sparsity, of other weights' names, or of another pretrained model."""
    if run.config.prune.rewind == "none":
        raise UsageError(
            f"{run.name} did not rewind, so its ticket trained longer than a moved one would: "
            "search again with --rewind 0"
        )
    shares = [numerics.density(each.masks[seed]) for each in (first, run)]
    if abs(shares[0] - shares[1]) > LIKE:
        raise UsageError(
            f"{first.name} keeps {shares[0]:.1%} of the weights, {run.name} {shares[1]:.1%}: "
            "transfer tickets of one sparsity"
        )
    names = [{n for n in each.masks[seed] if ".pooler." not in n} for each in (first, run)]
    if names[0] != names[1]:
        raise UsageError(
            f"{first.name} and {run.name} prune weights of other names: search with the same "
            "prune.include and prune.exclude"
        )
    mine, theirs = (dict(each.gold.make(seed).named_parameters()) for each in (first, run))
    if any(not torch.equal(mine[name], theirs[name]) for name in sorted(names[0])):
        raise UsageError(
            f"{first.name} and {run.name} start from other weights: tickets move between tasks "
            "of one pretrained model"
        )


def _content(runs: Sequence[Ticketed]) -> dict[str, str]:
    """What the searches had for inputs, and what they found."""
    held = {
        f"{name} of {run.name}": value for run in runs for name, value in run.gold.content.items()
    }
    found = {f"record of {run.name}": _digest(run.folder / "record.json") for run in runs}
    return {**held, **found}


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _remaining(source: Ticketed, target: Ticketed, seed: int) -> float:
    """The share of the target's prunable weights that the source's ticket leaves."""
    held, sizes = _fitted(source, target, seed), target.search.sizes
    gone = sum(int((~mask).sum()) for name, mask in held.items() if name in sizes)
    return 1 - gone / sum(sizes.values())


def _unlike(cells: Sequence[Cell]) -> list[str]:
    """Where a moved ticket leaves more or fewer weights than the target's own."""
    own = {cell.target: cell.remaining for cell in cells if cell.source == cell.target}
    return [
        f"the ticket of {cell.source} leaves {cell.remaining:.1%} of the weights that "
        f"{cell.target} prunes, its own {own[cell.target]:.1%}: exclude *.pooler.* in all searches "
        "to compare like with like"
        for cell in cells
        if abs(cell.remaining - own[cell.target]) > LIKE / 5
    ]


def _score(target: Ticketed, answers: Answers) -> list[float]:
    task, data = target.gold.task, target.search.reported
    return [task.score(task.predictions(s, data))[task.metric] for s in answers.values()]


def _cell(
    source: Ticketed,
    target: Ticketed,
    found: Answers,
    own: Answers,
    seeds: Sequence[int],
    *,
    margin: float | None,
    resamples: int,
) -> Cell:
    task, data = target.gold.task, target.search.reported
    mine, theirs = ([task.predictions(each[seed], data) for seed in seeds] for each in (found, own))
    compared: Comparison | None = None
    if source is not target:
        compared = compare(
            task,
            [p.answers_N for p in mine],
            [p.answers_N for p in theirs],
            mine[0].gold_N,
            margin=margin,
            resamples=resamples,
            rng=generator(0, "transfer", source.name, target.name),
            groups=groups_of(data),
        )
    scores = [task.score(p)[task.metric] for p in mine]
    return Cell(
        source=source.name,
        target=target.name,
        remaining=_remaining(source, target, seeds[0]),
        score=float(np.mean(scores)),
        interval=interval(
            task,
            [p.answers_N for p in mine],
            mine[0].gold_N,
            resamples=resamples,
            rng=generator(0, "cell", source.name, target.name),
            groups=groups_of(data),
        ),
        seeds=scores,
        gain=compared and compared.gain,
        verdict=compared and compared.verdict,
    )


def _overlaps(runs: Sequence[Ticketed], seeds: Sequence[int]) -> list[list[float]]:
    """Overlap (Jaccard) of the tickets of two tasks on the weights both prune, mean over seeds."""

    def alike(a: Ticketed, b: Ticketed) -> float:
        found: list[float] = []
        for seed in seeds:
            both = [name for name in a.masks[seed] if name in b.masks[seed]]
            mine, theirs = ({n: run.masks[seed][n] for n in both} for run in (a, b))
            found.append(numerics.overlap(mine, theirs)[0])
        return float(np.mean(found))

    return [[alike(a, b) for b in runs] for a in runs]


def _sentence(names: Sequence[str], cells: Sequence[Cell]) -> str:
    """Which source transfers best. Tasks differ in what a moved ticket loses, and no source is
    moved to its own: each is held against all that moved to the same task."""
    moved = [(cell, cell.gain.value) for cell in cells if cell.gain is not None]
    usual = {name: float(np.mean([v for c, v in moved if c.target == name])) for name in names}
    means = {
        name: float(np.mean([v - usual[c.target] for c, v in moved if c.source == name]))
        for name in names
    }
    first, second = sorted(means, key=lambda name: -means[name])[:2]
    listed = ", ".join(f"{name} {100 * mean:+.1f}" for name, mean in means.items())
    found = f"The ticket of {first} moves best"
    if means[first] - means[second] < NEAR:
        found = f"No ticket moves best: those of {first} and {second} do as well"
    return (
        f"{found}. Points beside the mean of all tickets moved to the same task, by source: "
        f"{listed}."
    )


def _broken(cells: Sequence[Cell], dense: Sequence[float]) -> list[str]:
    """Where a target's own ticket is so far below its dense model that little is compared."""
    own = [cell for cell in cells if cell.source == cell.target]
    return [
        f"the ticket of {cell.target} is {100 * (whole - cell.score):.0f} points below its dense "
        "model on its own task: moved tickets are compared with a broken one; search at less "
        "sparsity, or longer"
        for cell, whole in zip(own, dense, strict=True)
        if whole - cell.score > BROKEN
    ]
