"""One student for two languages, a teacher for each: Tan et al. 2019 on Multi30k, {de, fr} to en.

command    python benchmarks/multilingual.py --data $STILLHOUSE_DATA --out multi
           the full table: --rows 0 --epochs 20 --teacher-epochs 20 --seeds 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Several languages, one student"

individual: a student a language. joint: one for both, on the gold texts. distilled: one for both,
by the teacher of each row's language. threshold: the same, a teacher switched off once the student
is a point better on dev. All students have one shape and the teachers' tokenizer; the joint ones
see both languages' rows, so twice an individual one's in an epoch. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import stillhouse as sh
from stillhouse.core.console import Terminal

LANGUAGES = ("de", "fr")
STUDENT = {"width": 128, "layers": 2, "heads": 4, "ffn": 512}
TEACHER = {"width": 256, "layers": 3, "heads": 4, "ffn": 1024}
WORD = [{"kind": "soft", "weight": 0.5}, {"kind": "gold", "weight": 0.5}]


def rows(args: argparse.Namespace) -> None:
    """Pairs of each language, and of both."""
    for name, source in (("train", "train"), ("dev", "dev"), ("test", "test_2016")):
        lines = (args.data / "multi30k" / f"{source}.jsonl").read_text("utf-8").splitlines()
        found = [json.loads(x) for x in (lines[: args.rows or None] if name == "train" else lines)]
        for folder, languages in (*((x, (x,)) for x in LANGUAGES), ("both", LANGUAGES)):
            pairs = [
                json.dumps({"source": row[x], "target": row["en"], "language": x})
                for row in found
                for x in languages
            ]
            (args.out / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            path = args.out / "pairs" / folder / f"{name}.jsonl"
            path.write_text("\n".join(pairs) + "\n", encoding="utf-8")


def data(args: argparse.Namespace, which: str) -> dict[str, Any]:
    return {"path": str(args.out / "pairs" / which), "max_length": 64, "group": "language"}


def training(args: argparse.Namespace, epochs: float, lr: float) -> dict[str, Any]:
    return {"epochs": epochs, "lr": lr, "batch_size": args.batch, "evaluations": args.evaluations}


def start(args: argparse.Namespace, name: str, seed: int, shape: dict[str, int]) -> Path:
    folder = args.out / "start" / f"{name}-{seed}"
    first = args.out / "start" / "teacher-0"
    if not first.exists():
        sh.new("seq2seq", data(args, "both"), out=first, vocabulary=args.vocabulary, **TEACHER)
    if not folder.exists():
        sh.new("seq2seq", out=folder, tokenizer_from=str(first), seed=seed, **shape)
    return folder


def taught(args: argparse.Namespace, name: str, model: Path, which: str, **lessons: Any) -> Path:
    out = args.out / "runs" / name
    common = {"task": "seq2seq", "cache": str(args.out / "cache"), "resamples": 50}
    sh.finetune(model, data(args, which), out=out, training=training(args, **lessons), **common)
    return out


def distilled(args: argparse.Namespace, name: str, model: Path, **settings: Any) -> Path:
    out = args.out / "runs" / name
    run = sh.distill(
        args.out / "runs" / "teacher-de",
        data(args, "both"),
        task="seq2seq",
        student={"model": str(model)},
        out=out,
        teachers=[
            {"model": str(args.out / "runs" / f"teacher-{x}"), "group": x} for x in LANGUAGES
        ],
        combine="route",
        objective=WORD,
        training=training(args, args.epochs, args.lr),
        cache=str(args.out / "cache"),
        proof={"seeds": [0], "baseline": False, "efficiency": False, "resamples": 50},
        **settings,
    )
    if run.record.teachers:
        Terminal().note(f"{name}: passed {run.record.teachers.passed}")
    return out / "student"


def scored(args: argparse.Namespace, model: Path, languages: tuple[str, ...]) -> dict[str, float]:
    """BLEU with the beam on each language's test rows."""
    cache = str(args.out / "cache")
    return {x: sh.evaluate(model, data(args, x), cache=cache)["bleu"] for x in languages}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=8000, help="training rows a language (0: all)")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--teacher-epochs", type=float, default=10)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--teacher-lr", type=float, default=1e-3)
    parser.add_argument("--evaluations", type=int, default=4)
    args = parser.parse_args()
    rows(args)
    found: dict[str, list[dict[str, float]]] = {"teachers": [{}]}
    for x in LANGUAGES:
        model = start(args, f"teacher-{x}", 1 + LANGUAGES.index(x), TEACHER)
        lessons = {"epochs": args.teacher_epochs, "lr": args.teacher_lr}
        teacher = taught(args, f"teacher-{x}", model, x, **lessons)
        found["teachers"][0] |= scored(args, teacher, (x,))
    for seed in range(args.seeds):
        model = start(args, "student", seed, STUDENT)
        lessons = {"epochs": args.epochs, "lr": args.lr}
        of: dict[str, dict[str, float]] = {"individual": {}}
        for x in LANGUAGES:
            alone = taught(args, f"individual-{x}-{seed}", model, x, **lessons)
            of["individual"] |= scored(args, alone, (x,))
        joint = taught(args, f"joint-{seed}", model, "both", **lessons)
        of["joint"] = scored(args, joint, LANGUAGES)
        both = {"distilled": {}, "threshold": {"passing": {"margin": 1.0}}}
        for row, settings in both.items():
            student = distilled(args, f"{row}-{seed}", model, **settings)
            of[row] = scored(args, student, LANGUAGES)
        for row, scores in of.items():
            found.setdefault(row, []).append(scores)
        (args.out / "table.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for row, seeds in found.items():
        means = {x: round(float(np.mean([each[x] for each in seeds])), 2) for x in LANGUAGES}
        Terminal().note(f"{row}: {means}")


if __name__ == "__main__":
    main()
