"""What `precision: auto` is worth: each command in float32, in bf16 and with auto, on this machine.

    python benchmarks/precisions.py --out precisions.json

A small job of each command, on the built-in tickets and MiniLM; the three in turns, every second
round the other way round, medians. Models are loaded and data are read within the time of a job, as
a user's are, but the first round, which is not counted, fills the caches of rows and tokens; a
teacher's answers are never found there. The last column is auto's time as a multiple of the better
one's, round by round.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.config import DistillConfig, FinetuneConfig
from stillhouse.core.machine import machine
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import precision_of
from stillhouse.core.rundir import write_json, write_text
from stillhouse.core.settings import parse
from stillhouse.core.terms import Precision
from stillhouse.core.types import Example
from stillhouse.data.builtin import tickets
from stillhouse.extract.audit import audit
from stillhouse.extract.config import AuditConfig
from stillhouse.flows.distill import distill, label_only
from stillhouse.flows.finetune import finetune
from stillhouse.guard.model import ServedModel
from stillhouse.models.builtin import minilm
from stillhouse.models.decode import decode
from stillhouse.models.save import save_model
from stillhouse.models.search import Decoding
from stillhouse.tickets.config import TicketsConfig
from stillhouse.tickets.find import find

ASKED: tuple[Precision, ...] = ("float32", "bf16", "auto")
STEPS, QUESTIONS, TEXTS = 6, 64, 24
Job = Callable[[Precision, Path], float | None]  # seconds, where it measures them itself


class Jobs:
    """The commands, each a job with an empty folder to work in."""

    def __init__(self, root: Path) -> None:
        self.root, self.teacher = root, root / "teacher"
        self.texts = list(itertools.islice(tickets.unlabelled(QUESTIONS, seed=1), QUESTIONS))
        write_text(
            root / "texts.txt", "".join(f"{' '.join(text.split())}\n" for text in self.texts)
        )
        done = finetune(parse(FinetuneConfig, self._trained("float32", root / "c")), root / "first")
        save_model(done.model, done.gold.tokenizer, self.teacher)

    def _trained(self, precision: Precision, cache: Path) -> dict[str, Any]:
        training = {"steps": STEPS, "precision": precision, "evaluations": 1}
        data = {"path": str(tickets.folder())}
        return {"model": str(minilm()), "data": data, "training": training, "cache": str(cache)}

    def _distilled(self, precision: Precision, folder: Path) -> dict[str, Any]:
        return {
            "teacher": str(self.teacher), "student": {"layers": 3}, "cache": str(folder / "cache"),
            "data": {"path": str(tickets.folder()), "unlabelled": str(self.root / "texts.txt")},
            "training": {"steps": STEPS, "precision": precision, "evaluations": 1},
            "label": {"precision": precision},
            "evaluation": {"seeds": [0], "baseline": False},
        }  # fmt: skip

    def finetune(self, precision: Precision, folder: Path) -> None:
        finetune(parse(FinetuneConfig, self._trained(precision, folder / "cache")), folder / "run")

    def label(self, precision: Precision, folder: Path) -> None:
        label_only(parse(DistillConfig, self._distilled(precision, folder)))

    def distill(self, precision: Precision, folder: Path) -> None:
        distill(parse(DistillConfig, self._distilled(precision, folder)), folder / "run")

    def audit(self, precision: Precision, folder: Path) -> None:
        training = {"steps": STEPS, "precision": precision}
        values = {
            "victim": str(self.teacher), "data": {"path": str(tickets.folder())},
            "queries": {"kinds": ["random"], "budgets": [1.0], "of": QUESTIONS},
            "views": ["probabilities"], "cache": str(folder / "cache"),
            "thieves": [{"model": str(minilm()), "training": training}],
            "label": {"precision": precision}, "evaluation": {"seeds": [0]},
        }  # fmt: skip
        audit(parse(AuditConfig, values), folder / "run")

    def serve(self, precision: Precision, folder: Path) -> float:
        """The median time of one question."""
        served = ServedModel(self.teacher, precision=precision)
        seconds = []
        for text in self.texts[:64]:
            started = time.perf_counter()
            served.answers([Example(text, None)])
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[8:])

    def verify(self, precision: Precision, folder: Path) -> None:
        """A suspect is asked all that was kept."""
        suspect = ServedModel(self.teacher, precision=precision)
        suspect.answers([Example(text, None) for text in self.texts])

    def tickets(self, precision: Precision, folder: Path) -> None:
        """A search of one round: a dense training and a masked one."""
        values = self._trained(precision, folder / "cache")
        values |= {"prune": {"rounds": 1}, "evaluation": {"seeds": [0], "controls": []}}
        find(parse(TicketsConfig, values), folder / "run")

    def decode(self, precision: Precision, folder: Path) -> None:
        model = translator()
        rng = np.random.default_rng(0)
        sources = [rng.integers(2, 8000, length) for length in rng.integers(5, 30, TEXTS)]
        how = Decoding(beams=5, max_tokens=24, precision=precision)
        decode(model, sources, how, pad_id=0)

    @property
    def by_name(self) -> dict[str, Job]:
        return {
            "finetune": self.finetune, "label": self.label, "distill": self.distill,
            "audit": self.audit, "serve, p50 of one question": self.serve, "verify": self.verify,
            "tickets, two trainings": self.tickets, "decode": self.decode,
        }  # fmt: skip


def translator() -> Any:
    """A Marian model of random weights."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    sizes = {"layers": 3, "ffn_dim": 1024, "attention_heads": 4}
    shape = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sizes.items()}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = MarianConfig(
        vocab_size=8000, d_model=256, forced_eos_token_id=None, **shape, **special
    )
    return MarianMTModel(config).eval()


def timed(job: Job, precision: Precision, folder: Path) -> float:
    folder.mkdir()
    started = time.perf_counter()
    own = job(precision, folder)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return seconds if own is None else own


def measure(root: Path, repeats: int, only: str | None) -> dict[str, dict[str, list[float]]]:
    """Seconds of each job in each precision, round by round."""
    jobs = Jobs(root).by_name
    found: dict[str, dict[str, list[float]]] = {}
    for name, job in jobs.items():
        if only and only not in name:
            continue
        seconds: dict[str, list[float]] = {each: [] for each in ASKED}
        for number in range(repeats + 1):
            for precision in ASKED[:: -1 if number % 2 else 1]:
                taken = timed(job, precision, root / "job")
                if number:
                    seconds[precision].append(taken)
        found[name] = seconds
        print(row(name, seconds), file=sys.stderr, flush=True)
    return found


def row(name: str, seconds: dict[str, list[float]]) -> str:
    """A line of the table."""
    ms = [f"{1e3 * statistics.median(seconds[each]):,.0f}" for each in ASKED]
    pairs = zip(*(seconds[each] for each in ASKED), strict=True)
    ratio = statistics.median(auto / min(others) for *others, auto in pairs)
    return f"| {name} | {' | '.join(ms)} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="jobs whose name has this")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = measure(Path(root), args.repeats, args.only)
    here = machine()
    print(f"auto is {precision_of('auto')}: {here.why}; bf16 takes {here.cost_of_bf16}")
    print("| ms | float32 | bf16 | auto | auto / better |\n|---|---|---|---|---|")
    for name, seconds in found.items():
        print(row(name, seconds))
    if args.out:
        write_json(args.out, manifest(jobs=found, bf16_ratio=here.bf16_ratio))


if __name__ == "__main__":
    main()
