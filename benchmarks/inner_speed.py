"""Speed of inner-layer distillation on a CPU: a TinyBERT step, and a whole job beside TextBrewer's.

    pip install "stillhouse[benchmarks]"
    python benchmarks/inner_speed.py --teacher TEACHER --data SST2 --rows 3000 --out speed.json

Steps: the same batches, models and live teacher, once with soft targets only and once with
TinyBERT's embedding, hidden and attention terms and the soft targets too; in turns, medians.

Jobs: TextBrewer's GeneralDistiller with the same matches (hidden_mse for embeddings and three pairs
of layers, attention_mse for three pairs, soft targets), from texts to the trained student, as in
distill_speed.py. Its attention terms compare probabilities, all that transformers gives it; ours
compare scores before the softmax, as TinyBERT's paper does. Both have the teacher live.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from distill_speed import (
    KD_CE,
    SOFT,
    Autocast,
    Bench,
    Contender,
    first,
    jobs,
    load,
    loader,
    times,
)
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from stillhouse.core.errors import StillhouseError
from stillhouse.core.machine import machine
from stillhouse.core.manifest import manifest
from stillhouse.core.progress import Silent
from stillhouse.core.rundir import write_json
from stillhouse.core.terms import AnyTerm, InnerTermConfig
from stillhouse.core.types import Dense
from stillhouse.flows.plan import Plan
from stillhouse.models.forward import training_mode
from stillhouse.models.taps import geometry
from stillhouse.signals.teacher import LiveTeacher
from stillhouse.tasks.base import Dataset
from stillhouse.training import objective as objectives
from stillhouse.training.inner import Inside
from stillhouse.training.loop import fit
from stillhouse.training.objective import Objective
from stillhouse.training.optim import Optimizer, learning_rate
from stillhouse.training.steps import TextForward, leaves_of, plain_step

INNER: tuple[AnyTerm, ...] = (
    InnerTermConfig(kind="embedding"),
    InnerTermConfig(kind="hidden"),
    InnerTermConfig(kind="attention"),
)
OBJECTIVES: dict[str, tuple[AnyTerm, ...]] = {"soft": (SOFT,), "TinyBERT": (*INNER, SOFT)}
PAIRS = [(1, 2), (2, 4), (3, 6)]


def built(bench: Bench, terms: tuple[AnyTerm, ...]) -> Objective:
    inside = Inside(geometry(bench.student), geometry(bench.setup.teacher))
    choices = len(bench.setup.task.choices)
    return objectives.build(terms, choices=choices, signal=Dense, has_gold=True, inside=inside)


def live(bench: Bench, objective: Objective, data: Dataset) -> LiveTeacher:
    precision = bench.training.precision
    return LiveTeacher(bench.setup.teacher, data, fingerprint="live", precision=precision,
                       reads=objective.teacher_taps)  # fmt: skip


def steps(bench: Bench, data: Dataset, repeats: int, count: int) -> dict[str, list[float]]:
    """Milliseconds a step of each objective: `count` batches a turn, the objectives in turns."""
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.permutation(len(data))[:32]) for _ in range(count)]
    found: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    for repeat in range(repeats + 1):
        for name in sorted(OBJECTIVES, reverse=bool(repeat % 2)):
            took = _turn(bench, data, built(bench, OBJECTIVES[name]), rows)
            if repeat:  # the first is a warm-up
                found[name].append(took)
    return found


def _turn(bench: Bench, data: Dataset, objective: Objective, rows: list[np.ndarray]) -> float:
    student = copy.deepcopy(bench.student)
    source = live(bench, objective, data)
    forward = TextForward(bench.training, reads=objective.student_taps)
    with training_mode(student, on=True), leaves_of(forward, student) as leaves:
        optimizer = Optimizer(student, bench.training, leaves)
        started = time.perf_counter()
        for i, chosen in enumerate(rows):
            plain_step(
                student,
                [data.batch(chosen)],
                objective,
                source,
                forward,
                progress=0.0,
                rngs=[np.random.default_rng(i)],
                norms=False,
                parameters=optimizer.parameters,
                totals={"examples": len(chosen), "scored": len(chosen)},
            )
            optimizer.clip()
            optimizer.step(1e-5)
        return 1e3 * (time.perf_counter() - started) / len(rows)


def ours(bench: Bench, student: nn.Module, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Plan(replace(bench.setup, store=Path(folder)), Silent()).rows(bench.pool, "rows")
        objective = built(bench, OBJECTIVES["TinyBERT"])
        forward = TextForward(bench.training, reads=objective.student_taps)
        fit(student, data, objective, live(bench, objective, data), bench.training, seed=seed,
            forward=forward, accelerator=Accelerator(cpu=True))  # fmt: skip


def matches() -> list[dict[str, Any]]:
    hidden = [(0, 0), *PAIRS]
    found = [
        {"layer_S": s, "layer_T": t, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for s, t in hidden
    ]
    return found + [
        {"layer_S": s - 1, "layer_T": t - 1, "feature": "attention", "loss": "attention_mse",
         "weight": 1}
        for s, t in PAIRS
    ]  # fmt: skip


def adapt(batch: dict[str, Any], output: Any) -> dict[str, Any]:
    """What TextBrewer's distiller reads of a model's output."""
    return {
        "logits": output.logits.float(),
        "hidden": output.hidden_states,
        "attention": output.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def theirs(bench: Bench, student: nn.Module, seed: int, *, options: Collection[str] = ()) -> None:
    """`options`: fused AdamW, models in bf16 where the machine is faster with it (auto), rows of
    similar length grouped."""
    import textbrewer

    torch.manual_seed(seed)
    batches = loader(bench, seed, grouped="grouped" in options)
    config = bench.training.model_copy(update={"embeddings": "dense"})
    adamw: torch.optim.Optimizer = Optimizer(student, config).adamw
    if "fused" not in options:
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in adamw.param_groups]
        adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    rounds = int(config.epochs)
    total = len(batches) * rounds
    rate = {"lr_lambda": lambda step: learning_rate(config, step, total) / config.lr}
    how = {"scheduler_class": LambdaLR, "scheduler_args": rate, "max_grad_norm": config.clip or -1}
    teacher = copy.deepcopy(bench.setup.teacher)
    for model in (teacher, student):
        model.set_attn_implementation("eager")  # the only one that gives attentions
        model.config.output_attentions = model.config.output_hidden_states = True
    narrow = "auto" in options and machine().precision == "bf16"
    pair = (Autocast(m) if narrow else m for m in (teacher, student))
    with tempfile.TemporaryDirectory() as folder:
        settings = textbrewer.TrainingConfig(device="cpu", output_dir=folder, ckpt_frequency=0)
        loss = textbrewer.DistillationConfig(**KD_CE, intermediate_matches=matches())
        distiller = textbrewer.GeneralDistiller(settings, loss, *pair, adapt, adapt)
        with distiller:
            distiller.train(adamw, batches, rounds, batch_postprocessor=dict, **how)


CONTENDERS: dict[str, Contender] = {
    "stillhouse": ours,
    "textbrewer plain": theirs,
    "textbrewer + fused, auto": partial(theirs, options=["fused", "auto"]),
    "textbrewer + all, grouped": partial(theirs, options=["fused", "auto", "grouped"]),
}


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    plan = Plan(bench.setup, Silent())
    took = steps(bench, plan.rows(bench.pool, "rows"), 2 * args.repeats, 30)
    ratio = times(took["TinyBERT"], took["soft"])
    found = jobs(bench, CONTENDERS, args.repeats, args.seed)
    for runs in found.values():
        runs["examples_per_s"] = args.rows * args.epochs / statistics.median(runs["seconds"])
        runs["times_plain"] = times(found["textbrewer plain"]["seconds"], runs["seconds"])
    facts = {name: getattr(args, name) for name in ("rows", "epochs", "repeats", "seed")}
    facts |= {"threads": torch.get_num_threads(), "step_ms": took, "step_ratio": ratio}
    return manifest(**facts, jobs=found)


def show(found: dict[str, Any]) -> None:
    for name, took in found["step_ms"].items():
        print(f"a step with {name:<10}{statistics.median(took):>8.1f} ms")
    print(f"TinyBERT's takes {found['step_ratio']:.2f} times the soft one's")
    print(f"{'':<28}{'seconds':>9}{'examples/s':>12}{'x plain':>9}")
    for name, runs in found["jobs"].items():
        print(f"{name:<28}{statistics.median(runs['seconds']):>9.1f}"
              f"{runs['examples_per_s']:>12.0f}{runs['times_plain']:>9.2f}")  # fmt: skip


def profile(bench: Bench) -> None:
    """Prints the operations that TinyBERT's steps spend their time in."""
    data = Plan(bench.setup, Silent()).rows(bench.pool, "rows")
    rows = [np.arange(32 * i, 32 * i + 32) for i in range(20)]
    for name in OBJECTIVES:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            _turn(bench, data, built(bench, OBJECTIVES[name]), rows)
        print(name)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, help="folder of a fine-tuned classifier")
    parser.add_argument("--data", required=True, help="folder with train.jsonl and dev.jsonl")
    for name, default in {"rows": 3000, "epochs": 1, "repeats": 3, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--profile", action="store_true", help="profile steps, nothing else")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        try:
            bench = load(args, Path(store))
        except StillhouseError as error:
            sys.exit(f"error: {error}")
        if args.profile:
            return profile(first(bench, min(args.rows, 1000)))
        found = measure(bench, args)
    show(found)
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
