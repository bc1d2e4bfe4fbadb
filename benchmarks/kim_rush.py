"""Kim & Rush's table on Multi30k: word level, sequence level, interpolation, and combinations.

command    python benchmarks/kim_rush.py --data $STILLHOUSE_DATA --out kr
           the full table: --rows 0 --epochs 20 --teacher-epochs 20 --inter-epochs 5 --seeds 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Sequence-level distillation"

The teacher and the students are trained here from nothing, with one tokenizer, on the same pairs.
Every student of a size and seed starts from the same weights; rows with an interpolated stage go on
from the student of the row they name, and base+more goes on as long on the gold texts. Seeds are of
the students; the teacher is one. Selection is by greedy BLEU on dev; test_2016 is read once. Rows
are compared by paired bootstrap over test rows (and over seeds, where there are several).
A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from multi30k import Answers, answers, bleu_gain, ratio_gain, write_pairs

import stillhouse as sh
from stillhouse.core.console import Terminal

SIZES: dict[str, dict[str, int]] = {
    "128": {"width": 128, "layers": 2, "heads": 4, "ffn": 512},
    "64": {"width": 64, "layers": 2, "heads": 4, "ffn": 256},
}
GOLD = [{"kind": "gold"}]
WORD = [{"kind": "soft", "weight": 0.5}, {"kind": "gold", "weight": 0.5}]
FIRST: dict[str, dict[str, Any]] = {  # rows that train from nothing
    "seq": {"objective": GOLD, "targets": "decoded"},
    "word": {"objective": WORD},
    "seq+word": {"objective": WORD, "targets": "decoded"},
}
THEN: dict[str, tuple[str, list[dict[str, Any]]]] = {  # rows that go on with a student of another
    "base+more": ("base", GOLD),
    "base+inter": ("base", GOLD),
    "word+inter": ("word", WORD),
    "seq+inter": ("seq", GOLD),
    "seq+word+inter": ("seq+word", WORD),
}


def training(args: argparse.Namespace, epochs: float, lr: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "lr": lr,
        "batch_size": args.batch,
        "evaluations": args.evaluations,
        "dropout": args.dropout,
        "precision": args.precision,
    }


def data(args: argparse.Namespace) -> dict[str, Any]:
    return {"path": str(args.pairs), "text": "en", "label": "de", "max_length": 64}


def start(args: argparse.Namespace, name: str, seed: int, **shape: Any) -> Path:
    """A new model, with the teacher's tokenizer but for the teacher itself."""
    folder = args.out / "start" / f"{name}-{seed}"
    if not folder.exists():
        teacher = args.out / "start" / "teacher-0"
        given = {"tokenizer_from": str(teacher)} if name != "teacher" else {
            "vocabulary": args.vocabulary
        }  # fmt: skip
        source = None if name != "teacher" else data(args)
        sh.new("seq2seq", source, out=folder, seed=seed, dropout=args.dropout, **given, **shape)
    return folder


def taught(
    args: argparse.Namespace, name: str, model: Path, epochs: float, lr: float, seed: int = 0
) -> sh.Run:
    """A model trained on the gold texts."""
    return sh.finetune(
        model,
        data(args),
        out=args.out / "runs" / name,
        task="seq2seq",
        training=training(args, epochs, lr),
        seed=seed,
        cache=str(args.out / "cache"),
        resamples=200,
    )


def distilled(
    args: argparse.Namespace, name: str, model: Path, stage: dict[str, Any], seed: int
) -> sh.Run:
    return sh.distill(
        args.out / "runs" / "teacher",
        data(args),
        task="seq2seq",
        student={"model": str(model)},
        out=args.out / "runs" / name,
        stages=[{"name": "distil", **stage}],
        decode={"beams": args.best, "best": args.best},
        cache=str(args.out / "cache"),
        evaluation={"seeds": [seed], "baseline": False, "efficiency": False, "resamples": 200},
    )


def run_all(args: argparse.Namespace) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Metrics of every row, by size, a list over seeds."""
    first = start(args, "teacher", 0, width=256, layers=3, heads=4, ffn=1024)
    students, args.precision = args.precision, "float32"
    teacher = taught(args, "teacher", first, args.teacher_epochs, args.teacher_lr)
    args.precision = students
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        "teacher": {"base": [teacher.record.student.metrics]}
    }
    for size in args.sizes:
        shape = SIZES[size]
        of_size: dict[str, list[dict[str, float]]] = {}
        written: dict[str, list[Answers]] = {}
        for seed in range(args.seeds):
            model = start(args, size, seed, **shape)
            done = {"base": taught(args, f"{size}-base-{seed}", model, args.epochs, args.lr, seed)}
            for row, stage in FIRST.items():
                whole = {**stage, "training": training(args, args.epochs, args.lr)}
                done[row] = distilled(args, f"{size}-{row}-{seed}", model, whole, seed)
            for row, (before, objective) in THEN.items():
                inner = training(args, args.inter_epochs, args.lr / 4)
                folder = done[before].out
                folder = folder if before == "base" else folder / "student"
                if row == "base+more":  # as many steps again, on the gold texts
                    name = f"{size}-{row}-{seed}"
                    done[row] = taught(args, name, folder, args.inter_epochs, args.lr / 4, seed)
                    continue
                stage = {"objective": objective, "targets": "closest", "training": inner}
                done[row] = distilled(args, f"{size}-{row}-{seed}", folder, stage, seed)
            for row, run in done.items():
                of_size.setdefault(row, []).append(run.record.student.metrics)
                folder = run.out / "student"
                folder = folder if folder.exists() else run.out
                seen = answers(folder, data(args), args.out / "cache")
                written.setdefault(row, []).append(seen)
            found[size] = of_size
            write(args, found)
        claims(args, size, written)
    return found


def claims(args: argparse.Namespace, size: str, written: dict[str, list[Answers]]) -> None:
    """Every row against the baseline, and the fine-tuned ones against one trained on as long."""
    lines = [
        "| row | against | beam | greedy less the other's beam | nats a gold token | p(mode), % |",
        "|---|---|---|---|---|---|",
    ]
    for row, mine in written.items():
        for other in ("base", "base+more"):
            if row == other or (other == "base+more" and "inter" not in row):
                continue
            theirs = written[other]
            gains = (
                bleu_gain([x.beam_ES for x in mine], [x.beam_ES for x in theirs]),
                bleu_gain([x.greedy_ES for x in mine], [x.beam_ES for x in theirs]),
                ratio_gain([x.nats_E2 for x in mine], [x.nats_E2 for x in theirs]),
                ratio_gain(
                    [x.mode_E2 * [100, 1] for x in mine], [x.mode_E2 * [100, 1] for x in theirs]
                ),
            )
            cells = [
                f"{gain['gain']:+.2f} ({gain['interval'][0]:+.2f} to {gain['interval'][1]:+.2f})"
                for gain in gains
            ]
            lines.append(f"| {row} | {other} | {' | '.join(cells)} |")
    (args.out / f"claims-{size}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Terminal().note("\n".join([f"size {size}", *lines]))


def write(args: argparse.Namespace, found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """The table so far, as JSON and in Markdown."""
    (args.out / "table.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    names = ("bleu_greedy", "bleu", "perplexity", "mode_probability")
    lines = ["| model | row | greedy BLEU | beam BLEU | perplexity | p(mode) |"]
    lines += ["|---|---|---|---|---|---|"]
    for size, of_size in found.items():
        for row, seeds in of_size.items():
            cells = []
            for name in names:
                values = np.array([each[name] for each in seeds])
                scale, digits = (100, 2) if name == "mode_probability" else (1, 2)
                spread = f" ± {scale * values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{scale * values.mean():.{digits}f}{spread}")
            lines.append(f"| {size} | {row} | {' | '.join(cells)} % |")
    (args.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=8000, help="training pairs (0: all 29,000)")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--teacher-epochs", type=float, default=12)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--inter-epochs", type=float, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--best", type=int, default=8, help="of the teacher's beam")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--teacher-lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto")
    args = parser.parse_args()
    made = lambda row: [{"en": row["en"], "de": row["de"]}]  # noqa: E731
    args.pairs = write_pairs(args.data, args.out / "pairs", made, args.rows)
    found = run_all(args)
    Terminal().note((args.out / "table.md").read_text(encoding="utf-8"))
    Terminal().note(f"{sum(map(len, found.values()))} rows in {args.out / 'table.json'}")


if __name__ == "__main__":
    main()
