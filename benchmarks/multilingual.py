"""One student for two languages, a teacher for each: Tan et al. 2019 on Multi30k, {de, fr} to en.

command    python benchmarks/multilingual.py --data $STILLHOUSE_DATA --out multi
           the full table: --rows 0 --epochs 20 --seeds 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Several languages, one student"

individual: a model a language; they are the teachers. joint: one for both, on the gold texts.
distilled: one for both, by the teacher of each row's language. threshold: the same, a teacher
switched off once the student is a point better on dev. All have one shape, as there, and one
tokenizer, and are trained for as many steps: individual ones see their rows twice as often. Rows
are compared by paired bootstrap over a language's test rows (and over seeds, where there are
several: of the models for both; the individual ones are one of each, so gains over them are over
these two). With --alone-epochs they are trained for less or longer. A killed run goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from multi30k import Answers, answers, bleu_gain, write_pairs

import stillhouse as sh
from stillhouse.core.console import Terminal
from stillhouse.numerics.sequences import bleu_of

LANGUAGES = ("de", "fr")
SHAPE = {"width": 128, "layers": 2, "heads": 4, "ffn": 512}
WORD = [{"kind": "soft", "weight": 0.5}, {"kind": "gold", "weight": 0.5}]

KINDS: dict[str, dict[str, Any]] = {  # of one model for both, and what is set for it
    "joint": {},
    "distilled": {},
    "threshold": {"passing": {"margin": 1.0}},
}
BEFORE = {  # what a row is compared with
    "joint": ("individual",),
    "distilled": ("individual", "joint"),
    "threshold": ("individual", "joint", "distilled"),
}


def rows(args: argparse.Namespace) -> None:
    """Pairs of each language, and of both."""
    for name, languages in (*((x, (x,)) for x in LANGUAGES), ("both", LANGUAGES)):

        def made(row: dict[str, str], of: tuple[str, ...] = languages) -> list[dict[str, str]]:
            return [{"source": row[x], "target": row["en"], "language": x} for x in of]

        write_pairs(args.data, args.out / "pairs" / name, made, args.rows)


def data(args: argparse.Namespace, which: str) -> dict[str, Any]:
    return {"path": str(args.out / "pairs" / which), "max_length": 64, "group": "language"}


def training(args: argparse.Namespace, which: str) -> dict[str, Any]:
    return {
        "epochs": args.epochs if which == "both" else args.alone_epochs,
        "lr": args.lr,
        "batch_size": args.batch,
        "evaluations": args.evaluations,
        "precision": args.precision,
    }


def start(args: argparse.Namespace, name: str, seed: int) -> Path:
    """A new model; the first one learns the tokenizer, of both languages."""
    folder, first = args.out / "start" / f"{name}-{seed}", args.out / "start" / "first"
    if not first.exists():
        sh.new("seq2seq", data(args, "both"), out=first, vocabulary=args.vocabulary, **SHAPE)
    if not folder.exists():
        sh.new("seq2seq", out=folder, tokenizer_from=str(first), seed=seed, **SHAPE)
    return folder


def taught(args: argparse.Namespace, name: str, model: Path, which: str, seed: int) -> Path:
    out = args.out / "runs" / name
    sh.finetune(
        model,
        data(args, which),
        out=out,
        task="seq2seq",
        training=training(args, which),
        seed=seed,
        cache=str(args.out / "cache"),
        resamples=50,
    )
    return out


def distilled(args: argparse.Namespace, name: str, model: Path, seed: int, **settings: Any) -> Path:
    out = args.out / "runs" / name
    run = sh.distill(
        args.out / "runs" / "de",
        data(args, "both"),
        task="seq2seq",
        student={"model": str(model)},
        out=out,
        teachers=[{"model": str(args.out / "runs" / x), "group": x} for x in LANGUAGES],
        combine="route",
        objective=WORD,
        training=training(args, "both"),
        cache=str(args.out / "cache"),
        evaluation={"seeds": [seed], "baseline": False, "efficiency": False, "resamples": 50},
        **settings,
    )
    if run.record.teachers:
        Terminal().note(f"{name}: passed {run.record.teachers.passed}")
    return out / "student"


def read(args: argparse.Namespace, models: dict[str, Path]) -> dict[str, Answers]:
    """What a model of each language writes to its test rows."""
    return {x: answers(model, data(args, x), args.out / "cache") for x, model in models.items()}


def table(found: dict[str, list[dict[str, Answers]]]) -> dict[str, Any]:
    """Of each row and language BLEU (the beam's), and gains with intervals over other rows."""
    made: dict[str, Any] = {}
    for row, seeds in found.items():
        made[row] = {}
        for x in LANGUAGES:
            mine = [each[x].beam_ES for each in seeds]
            each_seed = mine[:1] if row == "individual" else mine
            of: dict[str, Any] = {"bleu": [bleu_of(beam_ES.sum(0)) for beam_ES in each_seed]}
            for other in BEFORE.get(row, ()):
                if other in found:
                    theirs = [each[x].beam_ES for each in found[other]]
                    of[f"over {other}"] = bleu_gain(mine, theirs)
            made[row][x] = of
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=5000, help="training rows a language (0: all)")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--alone-epochs", type=float, help="of individual ones (default: twice)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto")
    args = parser.parse_args()
    args.alone_epochs = args.alone_epochs or args.epochs * len(LANGUAGES)
    rows(args)
    alone = {x: taught(args, x, start(args, x, i), x, i) for i, x in enumerate(LANGUAGES)}
    found = {"individual": [read(args, alone)] * args.seeds}
    for seed in range(args.seeds):
        model = start(args, "both", seed)
        for kind in args.kinds:
            name = f"{kind}-{seed}"
            if kind == "joint":
                student = taught(args, name, model, "both", seed)
            else:
                student = distilled(args, name, model, seed, **KINDS[kind])
            answered = read(args, dict.fromkeys(LANGUAGES, student))
            found.setdefault(kind, []).append(answered)
    made = table(found)
    (args.out / "table.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    for row, of in made.items():
        Terminal().note(f"{row}: {json.dumps(of)}")


if __name__ == "__main__":
    main()
