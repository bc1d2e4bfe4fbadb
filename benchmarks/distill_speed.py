"""Examples per second of a whole distillation on a CPU: stillhouse's beside TextBrewer's.

    pip install "stillhouse[benchmarks]"
    python benchmarks/distill_speed.py --teacher TEACHER --data SST2 --rows 20000 --out speed.json

A job goes from loaded models and texts to the trained student: tokenising, the teacher's answers,
all epochs. Imports, loading, evaluating and checkpoints are left out. Our teacher fills an empty
cache, and answers a sample again as a check; TextBrewer's answers each step, or once if cached.

Both sides have the same rows, teacher, first student, batch size, steps, learning rate of each
step, AdamW (decay on matrices only), clipping, dropout rate and loss: with p and q the softened
answers of teacher and student, ours is T^2 KL(p || q), its gradient by the student's scores
T (q - p); TextBrewer's is their cross-entropy, its gradient (q - p) / T, so its weight is T^2.

TextBrewer plain is what its documentation shows, with batches padded to their longest row. Then
it is given what its user can do without changing it: fused AdamW (torch's default takes longer on
a CPU), models under bf16 autocast (where ours has bf16: --precision), its cache of logits, rows of
similar length together. Ours
trains the embeddings of the words in a step (rows), of all words as TextBrewer does (dense), or
none (frozen).
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding
from transformers.trainer_pt_utils import LengthGroupedSampler

from stillhouse.core.config import DistillConfig, TrainingConfig
from stillhouse.core.errors import DataError, StillhouseError
from stillhouse.core.manifest import manifest
from stillhouse.core.precision import precision_of
from stillhouse.core.progress import Silent
from stillhouse.core.rundir import write_json
from stillhouse.core.seeding import generator
from stillhouse.core.settings import parse
from stillhouse.core.terms import AUTO, Precision, Schedule, TermConfig
from stillhouse.core.types import Dense, Example, SignalSource
from stillhouse.data.sources import Part, Pool
from stillhouse.evaluation.evaluate import predict
from stillhouse.flows.plan import Plan
from stillhouse.flows.prepare import prepare
from stillhouse.flows.setup import Setup
from stillhouse.models.forward import DTYPES
from stillhouse.models.limits import max_tokens
from stillhouse.tasks.base import Dataset, text_dataset
from stillhouse.training import objective as objectives
from stillhouse.training.loop import fit
from stillhouse.training.optim import Optimizer, learning_rate
from stillhouse.training.steps import TextForward

TEMPERATURE = 2.0
SOFT = TermConfig(kind="soft", temperature=Schedule(start=TEMPERATURE))
KD_CE: dict[str, Any] = {"temperature": TEMPERATURE, "kd_loss_weight": TEMPERATURE**2}
WARM_UP_ROWS = 64
EMBEDDINGS = ("rows", "dense", "frozen")
PRODUCTS: dict[str, tuple[Callable[..., Tensor], int]] = {  # and how many tensors they take
    "aten::mm": (torch.mm, 2),
    "aten::bmm": (torch.bmm, 2),
    "aten::addmm": (torch.addmm, 3),
    "aten::baddbmm": (torch.baddbmm, 3),
}


@dataclass(frozen=True)
class Bench:
    """What all contenders share. `student` has the first weights; each run trains a copy."""

    setup: Setup
    pool: Pool
    examples: list[Example]
    student: nn.Module
    length: int  # tokens
    training: TrainingConfig

    def dataset(self, pool: Pool, store: Path) -> Dataset:
        task, tokenizer = self.setup.task, self.setup.tokenizer
        return text_dataset(task, pool, tokenizer, store, max_length=self.length)

    def accuracy(self, model: nn.Module) -> float:
        """On the dev rows, by the model's own float32 forward."""
        dev = self.dataset(self.setup.rows.reported, self.setup.store)
        return self.setup.task.score(predict(model, dev, self.setup.task))["accuracy"]


def first(bench: Bench, count: int, **training: object) -> Bench:
    """The same bench with its first `count` rows and other settings of the training."""
    (part,) = bench.pool.parts
    pool = Pool([replace(part, indices=part.indices[:count])])
    config = bench.training.model_copy(update=training)
    return replace(bench, pool=pool, examples=bench.examples[:count], training=config)


def load(args: argparse.Namespace, store: Path, *, precision: str = AUTO) -> Bench:
    """Models and rows, loaded and checked. Raises UsageError."""
    settled = precision_of(precision)
    given: dict[str, Any] = {"teacher": args.teacher, "data": {"path": args.data}}
    training = {"epochs": args.epochs, "precision": settled}
    given |= {"student": {"layers": 3}, "objective": (SOFT,), "training": training}
    given |= {"label": {"precision": settled}}
    setup = prepare(parse(DistillConfig, given | {"cache": str(store)}))
    (part,) = setup.rows.labelled.parts
    if not 0 < args.rows <= len(part):
        raise DataError(f"--rows {args.rows}: there are 1 to {len(part)} rows to train on")
    chosen = generator(args.seed, "rows").permutation(len(part))[: args.rows]
    pool = Pool([Part(part.rows, part.indices[np.sort(chosen)], labelled=True)])
    length = max_tokens(setup.teacher, setup.config.data.tokens("classification"))
    return Bench(setup, pool, list(pool), setup.make(args.seed), length, setup.config.training)


def answered(bench: Bench, folder: str) -> dict[str, Any]:
    """The rows as tokens and the teacher's answers, made in `folder`, as `train` takes them."""
    plan = Plan(replace(bench.setup, store=Path(folder)), Silent())
    source = plan.answers(bench.pool, "rows")
    return {"data": plan.rows(bench.pool, "rows"), "source": source}


def train(
    bench: Bench, student: nn.Module, seed: int, *, data: Dataset, source: SignalSource | None
) -> None:
    """Trains on the teacher's answers; without a source, on gold labels."""
    term, signal = (TermConfig(kind="gold"), None) if source is None else (SOFT, Dense)
    choices = len(bench.setup.task.choices)
    objective = objectives.build([term], choices=choices, signal=signal, has_gold=True)
    config, cpu = bench.training, Accelerator(cpu=True)
    forward = TextForward(config)
    fit(student, data, objective, source, config, seed=seed, forward=forward, accelerator=cpu)


def ours(bench: Bench, student: nn.Module, seed: int, *, embeddings: str) -> None:
    bench = first(bench, len(bench.pool), embeddings=embeddings)
    with tempfile.TemporaryDirectory() as folder:
        train(bench, student, seed, **answered(bench, folder))


class Autocast(nn.Module):
    """A model whose forward runs in bf16 where torch deems that safe."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(**inputs)


def loader(bench: Bench, seed: int, *, grouped: bool) -> DataLoader[Any]:
    """Shuffled batches of tokenised rows, each padded to its longest."""
    texts = [example.text for example in bench.examples]
    pairs = [e.pair or "" for e in bench.examples] if bench.examples[0].pair is not None else None
    coded = bench.setup.tokenizer(texts, pairs, truncation=True, max_length=bench.length)
    rows: Any = [dict(zip(coded, row, strict=True)) for row in zip(*coded.values(), strict=True)]
    size, order = bench.training.batch_size, torch.Generator().manual_seed(seed)
    sampler = LengthGroupedSampler(size, rows, generator=order) if grouped else None
    pad = DataCollatorWithPadding(bench.setup.tokenizer)
    return DataLoader(rows, size, not grouped, sampler, generator=order, collate_fn=pad)


def theirs(bench: Bench, student: nn.Module, seed: int, *, options: Collection[str] = ()) -> None:
    """`options`: fused AdamW, logits cached, models in bf16, rows of similar length grouped."""
    import textbrewer

    torch.manual_seed(seed)
    random.seed(seed)  # the order of cached batches
    batches = loader(bench, seed, grouped="grouped" in options)
    config = bench.training.model_copy(update={"embeddings": "dense"})
    adamw: torch.optim.Optimizer = Optimizer(student, config).adamw  # of ours when dense
    if "fused" not in options:
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in adamw.param_groups]
        adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    rounds = int(config.epochs)
    steps = len(batches) * rounds
    rate = {"lr_lambda": lambda step: learning_rate(config, step, steps) / config.lr}
    how = {"scheduler_class": LambdaLR, "scheduler_args": rate, "max_grad_norm": config.clip or -1}
    models = (bench.setup.teacher, student)
    teacher, pupil = (Autocast(m) if "bf16" in options else m for m in models)
    adaptors = [lambda _, output: {"logits": output.logits.float()}] * 2
    with tempfile.TemporaryDirectory() as folder:
        settings = textbrewer.TrainingConfig(device="cpu", output_dir=folder, ckpt_frequency=0)
        loss = textbrewer.DistillationConfig(**KD_CE, is_caching_logits="cached" in options)
        distiller = textbrewer.BasicDistiller(settings, loss, teacher, pupil, *adaptors)
        with distiller:  # batches as plain dicts: a BatchEncoding it would pass on by position
            distiller.train(adamw, batches, rounds, batch_postprocessor=dict, **how)


Contender = Callable[[Bench, nn.Module, int], None]


def contenders(precision: str) -> dict[str, Contender]:
    """In the order they run. TextBrewer's user adds one thing after another, bf16 where ours has
    it."""
    found: dict[str, Contender] = {"textbrewer plain": theirs}
    found |= {f"stillhouse {how}": partial(ours, embeddings=how) for how in EMBEDDINGS}
    added: list[str] = []
    for option in ("fused", *(["bf16"] if precision == "bf16" else []), "cached", "grouped"):
        added.append(option)
        found[f"textbrewer {', '.join(added)}"] = partial(theirs, options=list(added))
    return found


def timed(bench: Bench, contender: Contender, seed: int) -> tuple[float, nn.Module]:
    """Seconds of a contender's job, and its student."""
    student = copy.deepcopy(bench.student)
    gc.collect()
    started = time.perf_counter()
    contender(bench, student, seed)
    return time.perf_counter() - started, student


def jobs(
    bench: Bench, rivals: dict[str, Contender], repeats: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Each contender's seconds and accuracy; every second repeat runs in the other order."""
    for contender in rivals.values():
        timed(first(bench, WARM_UP_ROWS, epochs=1.0), contender, seed)
    found: dict[str, Any] = {name: {"seconds": [], "accuracy": []} for name in sorted(rivals)}
    for repeat in range(repeats):
        for name in list(rivals)[:: -1 if repeat % 2 else 1]:
            seconds, student = timed(bench, rivals[name], seed + repeat)
            found[name]["seconds"].append(seconds)
            found[name]["accuracy"].append(bench.accuracy(student))
            print(f"{repeat + 1}/{repeats} {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def epochs(bench: Bench, repeats: int, seed: int) -> dict[str, list[float]]:
    """Seconds of an epoch from the cache and of one on gold labels: in turn, same loop and seed."""
    once = first(bench, len(bench.pool), epochs=1.0)
    seconds: dict[str, list[float]] = {"cached": [], "gold": []}
    with tempfile.TemporaryDirectory() as folder:
        cached = partial(train, **answered(bench, folder))
        runs = {"cached": cached, "gold": partial(cached, source=None)}
        for repeat in range(repeats):
            for name in sorted(runs, reverse=bool(repeat % 2)):
                seconds[name].append(timed(once, runs[name], seed + repeat)[0])
    return seconds


def times(longer: list[float], shorter: list[float]) -> float:
    """Median over the repeats of how many times as long one took as the other."""
    return statistics.median(a / b for a, b in zip(longer, shorter, strict=True))


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    found = jobs(bench, contenders(bench.training.precision), args.repeats, args.seed)
    rivals = [name for name in found if name.startswith("textbrewer")]
    best = min(rivals, key=lambda name: statistics.median(found[name]["seconds"]))
    for runs in found.values():
        runs["examples_per_s"] = args.rows * args.epochs / statistics.median(runs["seconds"])
        runs["times_plain"] = times(found["textbrewer plain"]["seconds"], runs["seconds"])
        runs["times_best"] = times(found[best]["seconds"], runs["seconds"])
    facts = {name: getattr(args, name) for name in ("rows", "epochs", "repeats", "seed")}
    facts |= {"threads": torch.get_num_threads(), "textbrewer": version("textbrewer")}
    facts |= {"precision": bench.training.precision}
    epoch_s = epochs(bench, args.repeats, args.seed)
    facts |= {"jobs": found, "epoch_s": epoch_s, "epoch_times_gold": times(*epoch_s.values())}
    facts |= {"best_textbrewer": best, "teacher_accuracy": bench.accuracy(bench.setup.teacher)}
    return manifest(**facts)


def show(found: dict[str, Any]) -> None:
    print(f"{'':<32}{'seconds':>9}{'examples/s':>12}{'accuracy':>10}{'x plain':>9}{'x best':>8}")
    for name, runs in found["jobs"].items():
        seconds, mean = statistics.median(runs["seconds"]), statistics.mean(runs["accuracy"])
        print(
            f"{name:<32}{seconds:>9.1f}{runs['examples_per_s']:>12.0f}{mean:>10.4f}"
            f"{runs['times_plain']:>9.2f}{runs['times_best']:>8.2f}"
        )
    print(f"best: {found['best_textbrewer']}; teacher's accuracy {found['teacher_accuracy']:.4f}")
    print(f"an epoch from the cache takes {found['epoch_times_gold']:.3f} of a plain fine-tuning's")


def profile(bench: Bench, steps: int, seed: int) -> None:
    """Prints the operations that our steps spend their time in, and what the matrix products among
    them take by themselves."""
    with tempfile.TemporaryDirectory() as folder:
        run = partial(train, **answered(bench, folder))
        short = first(bench, len(bench.pool), steps=steps)
        timed(short, run, seed)
        whole = timed(short, run, seed)[0]
        kinds = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds, record_shapes=True) as found:
            timed(short, run, seed)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    calls = [(e.name, e.input_shapes) for e in found.events() or [] if e.name in PRODUCTS]
    alone = products_alone(calls, DTYPES[bench.training.precision])
    print(f"products alone: {alone / steps * 1e3:.1f} of {whole / steps * 1e3:.1f} ms a step")


def products_alone(calls: Sequence[tuple[str, list[list[int]]]], dtype: torch.dtype) -> float:
    """Seconds of matrix products of these shapes with nothing between them: median of five."""

    @functools.cache
    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    ready = [
        (product, [tensor(*shape) for shape in shapes[:count]])
        for product, count, shapes in ((*PRODUCTS[name], shapes) for name, shapes in calls)
    ]
    seconds: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        for product, given in ready:
            product(*given)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, help="folder of a fine-tuned classifier")
    parser.add_argument("--data", required=True, help="folder with train.jsonl and dev.jsonl")
    for name, default in {"rows": 20_000, "epochs": 3, "repeats": 3, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    precisions = get_args(Precision)
    parser.add_argument("--precision", choices=precisions, default=AUTO, help="of both sides")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--profile", type=int, metavar="STEPS", help="profile ours, nothing else")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as store:
        try:
            bench = load(args, Path(store), precision=args.precision)
        except StillhouseError as error:
            sys.exit(f"error: {error}")
        if args.profile:
            return profile(bench, args.profile, args.seed)
        found = measure(bench, args)
    show(found)
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
