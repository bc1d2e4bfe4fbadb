"""DistilBERT's objective on WikiText-2, whole and without each part, and its worth downstream.

command    python benchmarks/masked_lm.py --data $STILLHOUSE_DATA --out mlm
           the full table: --teacher-steps 3000 --steps 2000 --rows 0
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Masked-LM distillation"

The teacher is MiniLM with a masked-LM head, trained here on WikiText-2. The student has three of
its six layers, no token types and no pooler. Each variant trains as many steps on the same text;
then its encoder is fine-tuned on each task, as every other is. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import stillhouse as sh
from stillhouse.core.console import Terminal

KL = {"kind": "soft", "weight": 5.0, "temperature": 2.0}
MLM = {"kind": "gold", "weight": 2.0}
COSINE = {"kind": "cosine", "weight": 1.0}
FULL = [KL, MLM, COSINE]
TASKS = ("sst2", "mrpc", "rte", "stsb", "sick")
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"objective": FULL},
    "no KL": {"objective": [MLM, COSINE]},
    "no MLM": {"objective": [KL, COSINE]},
    "no cosine": {"objective": [KL, MLM]},
    "random initialisation": {"objective": FULL, "fresh": True},
}
PLAIN = {"evaluation": {"efficiency": False}, "export": {"onnx": False}}


def text(args: argparse.Namespace) -> Path:
    """WikiText-2, its valid and test texts cut to their first lines: what selects and reports."""
    folder = args.out / "text"
    if not (folder / "test.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in (("train", None), ("valid", args.lines // 4), ("test", args.lines)):
            whole = (args.data / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8")
            cut = whole.splitlines(keepends=True)[:lines]
            (folder / f"{name}.txt").write_text("".join(cut), encoding="utf-8")
    return folder


def masked_teacher(args: argparse.Namespace) -> Path:
    folder = args.out / "teacher"
    training = {"steps": args.teacher_steps, "lr": 5e-4, "evaluations": 2}
    sh.finetune(
        args.model,
        {"path": str(args.text), "max_length": 128},
        out=folder,
        task="masked_lm",
        training=training,
        cache=str(args.out / "cache"),
    )
    return folder


def distilled(name: str, seed: int, args: argparse.Namespace) -> Path:
    return args.out / "distilled" / f"{name.replace(' ', '-')}-{seed}"


def distil(name: str, teacher: Path, args: argparse.Namespace) -> None:
    settings = dict(VARIANTS[name])
    student = {"layers": 3, "family": "distilbert", "fresh": settings.pop("fresh", False)}
    training = {
        "steps": args.steps,
        "lr": 5e-4,
        "batch_size": 16,
        "evaluations": 1,
        "select": "last",
        "betas": [0.9, 0.98],
        "weight_decay": 0.0,
        "warmup": 0.05,
    }
    for seed in range(args.seeds):
        out = distilled(name, seed, args)
        sh.distill(
            teacher,
            {"path": str(args.text), "max_length": 128},
            task="masked_lm",
            student=student,
            out=out,
            seeds=[seed],
            baseline=False,
            training=training,
            cache=str(args.out / "cache"),
            progress=Terminal(),
            **PLAIN,
            **settings,
        )


def downstream(name: str, args: argparse.Namespace) -> None:
    from inner_layers import subset

    for seed in range(args.seeds):
        encoder = distilled(name, seed, args) / "student"
        for task in args.tasks:
            data = subset(args.data / task, args.out / "data" / task, args.rows)
            sh.finetune(
                encoder,
                data,
                out=args.out / "tasks" / task / f"{name.replace(' ', '-')}-{seed}",
                seed=seed,
                training={"epochs": 3, "lr": 1e-4, "evaluations": 3},
                cache=str(args.out / "cache"),
            )


def score(folder: Path) -> dict[str, float] | None:
    path = folder / "record.json"
    return (
        json.loads(path.read_text(encoding="utf-8"))["student"]["metrics"]
        if path.exists()
        else None
    )


def table(args: argparse.Namespace) -> str:
    """Perplexity, accuracy and downstream scores: means over seeds, their range for perplexity."""
    head = "| objective | perplexity (range) | masked accuracy | " + " | ".join(args.tasks)
    lines = [
        f"{head} | mean, minus full (95 %) |",
        "|---|---|---|" + "---|" * (len(args.tasks) + 1),
    ]
    means: dict[str, list[float]] = {}
    for name in VARIANTS:
        slug = name.replace(" ", "-")
        held = [score(distilled(name, s, args)) for s in range(args.seeds)]
        found = [each for each in held if each is not None]
        if not found:
            continue
        ppl = [each["perplexity"] for each in found]
        row = [
            name,
            f"{np.mean(ppl):.1f} ({min(ppl):.1f} to {max(ppl):.1f})",
            f"{np.mean([each['accuracy'] for each in found]):.3f}",
        ]
        by_seed = np.full((args.seeds, len(args.tasks)), np.nan)
        for j, task in enumerate(args.tasks):
            for s in range(args.seeds):
                one = score(args.out / "tasks" / task / f"{slug}-{s}")
                if one is not None:
                    by_seed[s, j] = 100 * one.get("accuracy", one.get("pearson", np.nan))
            row.append(f"{by_seed[:, j].mean():.1f}")
        means[name] = by_seed.mean(1).tolist()
        lines.append("| " + " | ".join([*row, against(means[name], means["full"])]) + " |")
    return "\n".join(lines)


def against(mine: list[float], full: list[float]) -> str:
    """The mean over tasks, and its difference from the full objective: t over seeds."""
    from scipy.stats import t

    gap = np.array(mine) - np.array(full)
    if len(gap) < 2 or not np.any(gap):
        return f"{np.mean(mine):.1f}"
    half = t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
    low, high = gap.mean() - half, gap.mean() + half
    return f"{np.mean(mine):.1f}, {gap.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder with wikitext2, sst2, ..."
    )
    parser.add_argument("--model", help="what the teacher is made of (default: MiniLM)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=1500, help="training rows a task; 0: all")
    parser.add_argument("--lines", type=int, default=1000, help="of the test text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="these variants only")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    args.text = text(args)
    if args.model is None:
        from stillhouse.models.builtin import minilm

        args.model = str(minilm())
    if not args.table:
        teacher = masked_teacher(args)
        for name in args.only:
            distil(name, teacher, args)
            downstream(name, args)
    print(table(args))


if __name__ == "__main__":
    main()
