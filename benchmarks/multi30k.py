"""What the benchmarks on Multi30k share: its rows as pairs, and what a model makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.config import DataConfig
from stillhouse.core.console import Terminal
from stillhouse.core.rundir import atomic
from stillhouse.core.settings import parse, section
from stillhouse.evaluation.writing import written_rows
from stillhouse.flows.common import store_root
from stillhouse.measure import model_and_rows
from stillhouse.models.load import folder_fingerprint
from stillhouse.numerics.sequences import bleu_of
from stillhouse.numerics.stats import paired_gain
from stillhouse.tasks.writing import judged, unkept


def write_pairs(
    source: Path, folder: Path, made: Callable[[dict[str, str]], list[dict[str, str]]], rows: int
) -> Path:
    """The pairs made of the first `rows` of train (0: all), of dev, and of test_2016."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in (("train", "train"), ("dev", "dev"), ("test", "test_2016")):
        lines = (source / "multi30k" / f"{file}.jsonl").read_text("utf-8").splitlines()
        found = [json.loads(x) for x in (lines[: rows or None] if name == "train" else lines)]
        pairs = [json.dumps(pair) for row in found for pair in made(row)]
        (folder / f"{name}.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Answers:
    """Of every test row: nats and tokens of the gold text; the probability of the beam's text, and
    1; statistics of BLEU, of the greedy text and of the beam's."""

    nats_E2: np.ndarray
    mode_E2: np.ndarray
    greedy_ES: np.ndarray
    beam_ES: np.ndarray


def answers(model: Path, data: dict[str, Any], cache: Path) -> Answers:
    """Kept in the cache, by model and rows: it writes once."""
    rows = hashlib.blake2b((Path(data["path"]) / "test.jsonl").read_bytes(), digest_size=8)
    kept = cache / f"answers-{folder_fingerprint(str(model))}-{rows.hexdigest()}.npz"
    if not kept.exists():
        config = parse(DataConfig, section(DataConfig, data, "path"))
        loaded, task, reported, *_ = model_and_rows(
            str(model), config, store_root(str(cache)), Terminal()
        )
        facts_E5, (greedy, beam) = unkept(written_rows(loaded, reported, task))  # pyright: ignore
        gold = [answer or "" for answer in reported.answers]  # pyright: ignore
        both = {"greedy": judged(greedy, gold)["bleu"], "beam": judged(beam, gold)["bleu"]}
        with atomic(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, facts=facts_E5, **both)
    with np.load(kept) as found:
        facts_E5 = found["facts"]
        mode_E2 = np.stack([np.exp(facts_E5[:, 3]), np.ones(len(facts_E5))], axis=1)
        return Answers(facts_E5[:, :2], mode_E2, found["greedy"], found["beam"])


def bleu_gain(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, Any]:
    """BLEU of one model's texts less another's, an array of statistics a seed each: its paired
    bootstrap over rows."""
    return _gain(bleu_of, mine, theirs)


def ratio_gain(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, Any]:
    """The same for rows of two numbers, of which one's sum is divided by the other's."""
    return _gain(lambda sums_S: float(sums_S[0] / sums_S[1]), mine, theirs)


def _gain(
    metric: Callable[[np.ndarray], float], mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> dict[str, Any]:
    def of(rows_E: np.ndarray, gold_E: np.ndarray) -> float:
        del gold_E
        return metric(rows_E["numbers"].sum(0))

    sides = [[_rows(x) for x in side] for side in (mine, theirs)]
    gain = paired_gain(of, *sides, np.zeros(len(mine[0])), rng=np.random.default_rng(0))
    return {"gain": gain.value, "interval": gain.interval, "p": gain.p_value}


def _rows(numbers_ES: np.ndarray) -> np.ndarray:
    """One element a row, as what is resampled."""
    found = np.empty(len(numbers_ES), [("numbers", numbers_ES.dtype, numbers_ES.shape[1:])])
    found["numbers"] = numbers_ES
    return found
