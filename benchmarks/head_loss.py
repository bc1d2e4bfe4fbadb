"""A vocabulary's loss without the matrix of scores: memory and time beside the dense way.

    python benchmarks/head_loss.py                       a CPU: 4,096 rows, 50,257 choices, float32
    python benchmarks/head_loss.py --device cuda         8,192 and 1,024 rows, 128,256 choices, bf16

A live teacher's states and a student's are given; measured is all that comes after: both heads,
forward KL at temperature 1, and the gradient by the student's states and by its head.

dense      what its user would write: all scores of both, F.kl_div of their log_softmax, autograd
ours-dense our terms on all scores
chunked    our terms a few rows at a time (256 MiB)
liger      LigerFusedLinearJSD with beta 0 (CUDA, where liger_kernel is installed)

Memory is a fresh process's high-water mark over what it held with its inputs made, on CUDA
max_memory_allocated likewise; gradients count. Time is the median of runs that take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.core.head import Factored, Head
from stillhouse.core.memory import resident
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import Batch, Dense, StudentOutput, Unscored
from stillhouse.training.chunked import MEMORY, chunked
from stillhouse.training.objective import build

# Axes: N rows, K choices, H the student's width, W the teacher's.


@dataclass(frozen=True)
class Case:
    rows: int
    choices: int
    student: int
    teacher: int
    device: str

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32


CASES = {
    "cpu": [Case(4096, 50257, 256, 512, "cpu"), Case(4096, 50257, 512, 512, "cpu")],
    "cuda": [Case(8192, 128256, 4096, 4096, "cuda"), Case(1024, 128256, 4096, 4096, "cuda")],
}


class Inputs:
    """States and heads of both, of about the spread that trained models' scores have."""

    def __init__(self, case: Case) -> None:
        self.case = case
        draw = torch.Generator(case.device).manual_seed(0)

        def tensor(rows: int, width: int, scale: float) -> Tensor:
            made = torch.randn(rows, width, generator=draw, device=case.device)
            return made.mul_(scale).to(case.dtype)

        self.student_NH = tensor(case.rows, case.student, 1.0).requires_grad_()
        self.teacher_NW = tensor(case.rows, case.teacher, 1.0)
        self.head_KH = tensor(case.choices, case.student, 2 * case.student**-0.5).requires_grad_()
        self.head_KW = tensor(case.choices, case.teacher, 2 * case.teacher**-0.5)

    def clear(self) -> None:
        self.student_NH.grad = self.head_KH.grad = None


def dense(given: Inputs) -> Tensor:
    with torch.no_grad():
        teacher_NK = (given.teacher_NW @ given.head_KW.T).float().log_softmax(-1)
    student_NK = (given.student_NH @ given.head_KH.T).float().log_softmax(-1)
    return F.kl_div(student_NK, teacher_NK, reduction="batchmean", log_target=True)


def _ours(given: Inputs, *, whole: bool, memory: int = MEMORY, fuse: bool = True) -> Tensor:
    case = given.case
    aim = build([TermConfig(kind="soft")], choices=case.choices, signal=Dense, has_gold=False)
    precision = "bf16" if case.dtype == torch.bfloat16 else "float32"
    mine = Factored(given.student_NH, Head(given.head_KH), precision)
    theirs = Unscored(Factored(given.teacher_NW, Head(given.head_KW), precision))
    batch = Batch({}, np.arange(case.rows))
    if not whole:
        return chunked(
            aim, aim.terms, mine, theirs, batch,
            progress=0.0, totals={"scored": case.rows, "examples": 1}, memory=memory, fuse=fuse,
        ).loss  # fmt: skip
    output, signal = StudentOutput(mine.dense()), Dense(theirs.factored.dense())
    return aim.terms[0](output, signal, batch, 0.0).sum / case.rows


def ours_dense(given: Inputs) -> Tensor:
    return _ours(given, whole=True)


def ours_chunked(given: Inputs) -> Tensor:
    return _ours(given, whole=False)


def ours_autograd(given: Inputs) -> Tensor:
    return _ours(given, whole=False, fuse=False)


def liger(given: Inputs) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearJSD  # pyright: ignore

    loss = LigerFusedLinearJSD(jsd_beta=0.0)
    return loss(given.student_NH, given.head_KH, given.teacher_NW, given.head_KW)


WAYS: dict[str, Callable[[Inputs], Tensor]] = {
    "dense": dense,
    "ours-dense": ours_dense,
    "chunked": ours_chunked,
    "chunked, autograd": ours_autograd,
    "liger": liger,
}


def seconds(way: str, given: Inputs) -> tuple[float, float]:
    """Time of one forward and backward, and the loss."""
    given.clear()
    if given.case.device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        loss = WAYS[way](given)
        loss.backward()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, loss.item()
    started = time.perf_counter()
    loss = WAYS[way](given)
    loss.backward()
    return time.perf_counter() - started, loss.item()


def peak(way: str, case: Case) -> int:
    """Bytes over the inputs, of this process's one run."""
    given = Inputs(case)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(way, given)
        return torch.cuda.max_memory_allocated() - before
    seconds(way, Inputs(Case(8, 64, case.student, case.teacher, "cpu")))  # what libraries load
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is held
    before = resident() or 0
    seconds(way, given)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if "VmHWM" in line) - before


def fresh_peak(way: str, index: int, device: str) -> int:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--peak", way, str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure(index: int, device: str, ways: list[str], rounds: int) -> None:
    case = CASES[device][index]
    print(f"{case.rows} rows, {case.choices} choices, widths {case.student} and {case.teacher}")
    peaks = {way: fresh_peak(way, index, device) for way in ways}
    given, times, losses = Inputs(case), {way: [] for way in ways}, {}
    for turn in range(rounds + 1):  # the first one warms up
        for way in ways:
            took, losses[way] = seconds(way, given)
            times[way] += [took] if turn else []
    median = {way: statistics.median(found) for way, found in times.items()}
    for way in ways:
        print(
            f"  {way:18} {peaks[way] / 2**20:8.0f} MiB {peaks[way] / peaks['dense']:7.1%}"
            f" {median[way]:9.4f} s {median[way] / median['dense']:6.2f}"
            f"  [{min(times[way]):.4f}, {max(times[way]):.4f}]  loss {losses[way]:.6f}"
        )
    print(json.dumps({"case": vars(case), "peak": peaks, "seconds": times}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=CASES, default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--cases", nargs="+", type=int)
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.peak[0], CASES[args.device][int(args.peak[1])]))
        return
    ways = args.ways or ["dense", "ours-dense", "chunked"]
    if args.ways is None and args.device == "cuda" and importlib.util.find_spec("liger_kernel"):
        ways.append("liger")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for index in args.cases or range(len(CASES[args.device])):
        measure(index, args.device, ways, args.rounds)


if __name__ == "__main__":
    main()
