"""Whether our students are as good as TextBrewer's: paired seeds of one small job.

    pip install "stillhouse[benchmarks]"
    python benchmarks/distill_pairs.py --teacher TEACHER --data SST2 --out pairs.json

The job is that of distill_speed.py, ours with dense embeddings, TextBrewer with all that is added
to it. A student is compared with the labels of the dev rows, and with the teacher on further rows
that no one was trained on: their probabilities differ by less chance than right and wrong answers.
Every finished student is kept in --out; the same command goes on from there (`--minutes` a call).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill_speed import Bench, contenders, first, load, timed
from scipy import stats
from torch import Tensor, nn

from stillhouse.core.errors import StillhouseError
from stillhouse.core.precision import precision_of
from stillhouse.core.rundir import write_json
from stillhouse.core.terms import AUTO
from stillhouse.data.sources import Pool
from stillhouse.evaluation.evaluate import score_rows
from stillhouse.numerics.divergences import forward_kl

OURS = "stillhouse dense"
UNITS = {
    "dev accuracy": 100.0,
    "teacher agreement": 100.0,
    "KL from teacher": 1000.0,
}  # a hundredth


@dataclass(frozen=True)
class Judged:
    """What students are compared on: rows that no one is trained on, and the teacher's scores."""

    bench: Bench  # of these rows
    teacher_NK: Tensor

    @classmethod
    def of(cls, bench: Bench, trained: int) -> Judged:
        (part,) = bench.pool.parts
        rest = Pool([replace(part, indices=part.indices[trained:])])
        bench = replace(bench, pool=rest, examples=list(rest))
        return cls(bench, cls.scores(bench, bench.setup.teacher))

    @staticmethod
    def scores(bench: Bench, model: nn.Module) -> Tensor:
        data = bench.dataset(bench.pool, bench.setup.store)
        return torch.from_numpy(score_rows(model, data, fast=True))

    def measures(self, student: nn.Module) -> dict[str, float]:
        student_NK = self.scores(self.bench, student)
        agrees_N = student_NK.argmax(-1) == self.teacher_NK.argmax(-1)
        return {
            "dev accuracy": self.bench.accuracy(student),
            "teacher agreement": float(agrees_N.float().mean()),
            "KL from teacher": float(forward_kl(student_NK, self.teacher_NK).mean()),
        }


def collect(args: argparse.Namespace, store: Path, held: dict[str, Any]) -> None:
    """Trains and measures what `held` lacks, as long as there is time."""
    started, rows = time.monotonic(), args.rows
    args = argparse.Namespace(**{**vars(args), "rows": rows + args.further})
    whole = load(args, store, precision=args.precision)
    judged, bench = Judged.of(whole, rows), first(whole, rows)
    sides = contenders(bench.training.precision)
    names = (OURS, list(sides)[-1])
    for seed in range(args.pairs):
        for name in names:
            runs = held["runs"].setdefault(name, {})
            if str(seed) in runs or time.monotonic() - started > args.minutes * 60:
                continue
            seconds, student = timed(bench, sides[name], seed)
            runs[str(seed)] = judged.measures(student)
            write_json(args.out, held)
            print(f"{name}, seed {seed}: {seconds:.1f} s", file=sys.stderr, flush=True)


def show(held: dict[str, Any]) -> None:
    """Means of both, and the paired differences with their 95 % intervals."""
    mine, theirs = held["runs"][OURS], next(r for n, r in held["runs"].items() if n != OURS)
    seeds = sorted(set(mine) & set(theirs), key=int)
    print(f"{len(seeds)} pairs; {OURS} minus {next(n for n in held['runs'] if n != OURS)}")
    if len(seeds) < 2:
        return
    for measure, unit in UNITS.items():
        a, b = (np.array([runs[seed][measure] for seed in seeds]) * unit for runs in (mine, theirs))
        found = stats.ttest_rel(a, b)
        low, high = found.confidence_interval()
        print(
            f"{measure:<18} x {unit:g}: {a.mean():.2f} and {b.mean():.2f}, "
            f"{(a - b).mean():+.3f} ({low:+.3f} to {high:+.3f}), p = {found.pvalue:.2g}"
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, help="folder of a fine-tuned classifier")
    parser.add_argument("--data", required=True, help="folder with train.jsonl and dev.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file of what was measured")
    parser.add_argument("--precision", choices=(AUTO, "bf16", "float32"), default=AUTO)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no student after these")
    for name, default in {"rows": 3000, "further": 3000, "epochs": 2, "pairs": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(argv)
    job = {name: getattr(args, name) for name in ("rows", "further", "epochs")}
    job |= {"precision": precision_of(args.precision), "seed": 0}
    held: dict[str, Any] = {"job": job, "runs": {}}
    if args.out.exists():
        held = json.loads(args.out.read_text(encoding="utf-8"))
        if held["job"] != job:
            sys.exit(f"error: {args.out} is of another job: {held['job']}")
    args.seed = job["seed"]
    with tempfile.TemporaryDirectory() as store:
        try:
            collect(args, Path(store), held)
        except StillhouseError as error:
            sys.exit(f"error: {error}")
    show(held)


if __name__ == "__main__":
    main()
