"""Learning the membership check: the owner's data against questions that a stranger makes up.

Axes: N questions, B of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.precision import Auto
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import write_json
from stillhouse.core.seeding import derive, generator, shape_seed
from stillhouse.core.types import Example
from stillhouse.data.sources import Pool, load
from stillhouse.extract.config import Kind
from stillhouse.extract.corpus import read_corpus
from stillhouse.extract.queries import Source, queries
from stillhouse.extract.setup import usual_form
from stillhouse.flows.common import store_root
from stillhouse.flows.labelling import label_rule
from stillhouse.guard.membership import Head
from stillhouse.guard.model import ServedModel
from stillhouse.guard.settings import Features, LearnConfig

BATCH, CHUNK = 32, 512
LEAST = 100  # rows
MET: tuple[Kind, ...] = ("wiki", "random")


@dataclass(frozen=True)
class Quality:
    """How well questions of one kind are told from the owner's reported rows: AUC, accuracy at the
    score 0 of equal parts, and the share that is caught where so many honest ones are."""

    kind: str
    count: int
    auc: float
    accuracy: float
    at_line: float
    at_1_percent: float
    at_0_1_percent: float


@dataclass(frozen=True)
class Learned:
    """honest: the share of reported rows beyond the line."""

    head: Head
    honest: float
    qualities: list[Quality]

    def as_json(self) -> dict[str, Any]:
        return {
            "features": self.head.features, "line": self.head.line, "beyond": self.head.beyond,
            "honest": self.honest, "qualities": [asdict(each) for each in self.qualities],
        }  # fmt: skip


def learn_check(config: LearnConfig, out: Path, *, progress: Progress | None = None) -> Learned:
    """Trains the check of a model and writes it to `out`, beside how good it is. Raises UsageError,
    DataError, ModelError."""
    progress, auto = progress or Silent(), Auto.of()
    for note in auto.notes(config):
        progress.note(note)
    config, store = auto.settle(config), store_root(config.cache)
    served = ServedModel(
        config.model, max_length=config.max_length, precision=config.precision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    rule = label_rule(
        "auto", config.model, config.data.label_map, trust_remote_code=config.trust_remote_code
    )
    splits = load(config.data, store / "rows", rule=rule, progress=progress)
    real = _rows([splits.labelled, splits.unlabelled], config.rows, config.seed)
    if len(real) < LEAST:
        raise DataError(
            f"{len(real)} rows to learn a check from are too few (reported and held-out rows don't "
            f"count): give {LEAST} and more"
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give --out a folder")
    corpus = read_corpus(config.corpus, store, progress)
    form = usual_form("span" if served.task == "span" else "auto", splits)

    def made_up(kind: Kind, count: int, purpose: str) -> list[Example]:
        source = Source(corpus, kind, form, derive(config.seed, "check", purpose))
        return queries(source, count)

    reported = [Example(e.text, e.pair) for e in splits.reported]
    kept_out = max(1, len(real) // 10)
    whole = made_up("wiki", len(real) + len(reported), "training")
    fake, fresh = whole[: len(real)], whole[len(real) :]  # no text is in both
    head = _train(config, served, real[kept_out:], fake[kept_out:], progress)
    honest_N = _scores(served, head, real[:kept_out], progress, "held-out rows")
    line = float(np.quantile(honest_N, 1 - config.beyond, method="higher"))
    head = Head(
        head.states_TH, head.logits_K, head.bias, line, float((honest_N > line).mean()),
        config.features, served.fingerprint,
    )  # fmt: skip
    theirs_N = _scores(served, head, reported, progress, "reported rows")
    found = []
    for kind in MET:
        asked = fresh if kind == "wiki" else made_up(kind, len(reported), "quality")
        odd_N = _scores(served, head, asked, progress, f"{kind} questions")
        found.append(_quality(kind, theirs_N, odd_N, line))
    shuffled = _shuffled(reported, config.seed)
    odd_N = _scores(served, head, shuffled, progress, "shuffled rows")
    found.append(_quality("shuffled", theirs_N, odd_N, line))
    learned = Learned(head, float((theirs_N > line).mean()), found)
    head.save(out)
    write_json(out / "membership.json", learned.as_json())
    return learned


def _rows(pools: Sequence[Pool], most: int | None, seed: int) -> list[Example]:
    """Rows of each, at most so many, in a random order, without labels."""
    rng = generator(seed, "check rows")
    rows = [e for pool in pools for e in pool.at(rng.permutation(len(pool))[:most])]
    return [Example(rows[i].text, rows[i].pair) for i in rng.permutation(len(rows))]


def _train(
    config: LearnConfig, served: ServedModel, real: Sequence[Example], fake: Sequence[Example],
    progress: Progress,
) -> Head:  # fmt: skip
    """One linear layer by Adam on half real, half made-up questions."""
    both = [(each, 0.0) for each in real] + [(each, 1.0) for each in fake]
    layer: nn.Linear | None = None
    optimizer: torch.optim.Optimizer | None = None
    with progress.stage("learning the check", config.epochs * len(both), "questions") as step:
        for epoch in range(config.epochs):
            order = generator(config.seed, "check order", epoch).permutation(len(both))
            for rows, flat_BF in _flat(served, config.features, [both[i][0] for i in order]):
                if layer is None or optimizer is None:
                    layer = _layer(flat_BF.shape[1], config.seed)
                    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
                odd_B = torch.tensor([both[order[row]][1] for row in rows])
                loss = nn.functional.binary_cross_entropy_with_logits(layer(flat_BF)[:, 0], odd_B)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step(len(rows))
    assert layer is not None
    weight_F = layer.weight.detach()[0]
    hidden = served.model.config.hidden_size
    states = 0 if config.features == "logits" else served.max_length * hidden
    return Head(
        weight_F[:states].view(-1, hidden).clone(),
        weight_F[states:].clone(), layer.bias.detach()[0].clone(), 0.0, 0.0, config.features,
        served.fingerprint,
    )  # fmt: skip


def _layer(width: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape_seed(seed))
        return nn.Linear(width, 1)


def _flat(
    served: ServedModel, features: Features, examples: Sequence[Example]
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of flattened features in a random order of similar lengths: which examples, and
    B x F, the states' T x H first."""
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        batches = list(served.features(chunk))
        for at in generator(start, "check batches").permutation(len(batches)).tolist():
            rows, states_BTH, mask_BT, logits_BK = batches[at]
            parts: list[Tensor] = []
            if features != "logits":
                held_BTH = states_BTH.new_zeros(len(rows), served.max_length, states_BTH.shape[-1])
                held_BTH[:, : states_BTH.shape[1]] = states_BTH * mask_BT[..., None]
                parts.append(held_BTH.flatten(1))
            if features != "last":
                parts.append(logits_BK)
            flat_BF = torch.cat(parts, 1)
            for cut in range(0, len(rows), BATCH):
                picked = slice(cut, cut + BATCH)
                yield [start + row for row in rows[picked]], flat_BF[picked]


def _scores(
    served: ServedModel, head: Head, examples: Sequence[Example], progress: Progress, what: str
) -> np.ndarray:
    """The raw score of each."""
    found_N = np.empty(len(examples))
    with progress.stage(f"checking {what}", len(examples), "questions") as step:
        for start in range(0, len(examples), CHUNK):
            for rows, states, mask, logits in served.features(examples[start : start + CHUNK]):
                found_N[start + np.array(rows)] = head.raw(states, mask, logits).numpy()
                step(len(rows))
    return found_N


def _quality(kind: str, honest_N: np.ndarray, odd_N: np.ndarray, line: float) -> Quality:
    above = stats.mannwhitneyu(odd_N, honest_N).statistic  # pairs in the right order

    def caught(share: float) -> float:
        at = np.quantile(honest_N, 1 - share, method="higher")
        return float((odd_N > at).mean())

    correct = ((honest_N <= 0).mean() + (odd_N > 0).mean()) / 2
    return Quality(
        kind, len(odd_N), float(above / (len(odd_N) * len(honest_N))), float(correct),
        float((odd_N > line).mean()), caught(0.01), caught(0.001),
    )  # fmt: skip


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The same texts with their words in another order."""
    rng = generator(seed, "check shuffled")

    def mixed(text: str) -> str:
        return " ".join(rng.permutation(text.split()).tolist())

    return [Example(mixed(e.text), None if e.pair is None else mixed(e.pair)) for e in examples]
