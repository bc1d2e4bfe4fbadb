"""Four ways to train a compact student, over its size, as in 'Well-Read Students Learn Better'.

command    python benchmarks/well_read.py --data $STILLHOUSE_DATA --teacher sst2-teacher \\
               --out well-read
           the full one: --labelled 67349 --transfer 0 --pretrain-steps 10000 --steps 6000
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Well-read students"

Basic training: a fresh student on the labelled rows. Distillation: soft targets (T = 1) on labelled
and transfer rows, no gold labels. Pre-training: masked LM on WikiText-2 first, then the labelled
rows. Pre-trained distillation: masked LM, soft targets, then the labelled rows. Each pair has as
many optimizer steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import stillhouse as sh
from stillhouse.core.console import Terminal

SIZES = {"2/64": (2, 64, 2), "2/128": (2, 128, 2), "4/128": (4, 128, 2), "4/256": (4, 256, 4)}
CURVES = (
    "basic training",
    "distillation",
    "pre-training + fine-tuning",
    "pre-trained distillation",
)


def rows(args: argparse.Namespace) -> dict[str, Any]:
    """The labelled rows with dev, and the transfer rows' texts."""
    folder = args.out / "data"
    if not (folder / "transfer.txt").exists():
        (folder / "labelled").mkdir(parents=True, exist_ok=True)
        source = args.data / "sst2"
        lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        labelled, rest = lines[: args.labelled], lines[args.labelled :]
        (folder / "labelled" / "train.jsonl").write_text("".join(labelled), encoding="utf-8")
        dev = (source / "dev.jsonl").read_text(encoding="utf-8")
        (folder / "labelled" / "dev.jsonl").write_text(dev, encoding="utf-8")
        texts = [json.loads(line)["text"] for line in rest[: args.transfer or None]]
        (folder / "transfer.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {"path": str(folder / "labelled"), "unlabelled": str(folder / "transfer.txt")}


def train(size: str, args: argparse.Namespace) -> None:
    layers, width, heads = SIZES[size]
    student = {"layers": layers, "width": width, "heads": heads, "fresh": True}
    soft = [{"kind": "soft", "temperature": 1.0}]
    pretrain = {
        "name": "pretrain",
        "objective": [{"kind": "gold"}],
        "corpus": {"path": str(args.data / "wikitext2" / "train.txt"), "length": 128},
        "training": {
            "steps": args.pretrain_steps,
            "batch_size": 16,
            "lr": 1e-3,
            "evaluations": 1,
            "select": "last",
        },
    }
    distil = {"name": "distil", "objective": soft}
    finetune = {
        "name": "finetune",
        "objective": [{"kind": "gold"}],
        "rows": "labelled",
        "training": {"steps": args.steps // 4, "lr": 1e-4},
    }
    for name, stages in (("fresh", [distil]), ("read", [pretrain, distil, finetune])):
        sh.distill(
            args.teacher,
            rows(args),
            student=student,
            stages=stages,
            seeds=args.seeds,
            out=args.out / "runs" / f"{name}-{size.replace('/', '-')}",
            training={"steps": args.steps, "lr": args.lr},
            evaluation={"efficiency": False},
            export={"onnx": False},
            cache=str(args.out / "cache"),
            progress=Terminal(),
        )


def table(args: argparse.Namespace) -> str:
    lines = [
        "| student (layers/width) | parameters | " + " | ".join(CURVES) + " |",
        "|---|---|" + "---|" * len(CURVES),
    ]
    teacher = None
    for size in SIZES:
        cells: list[str] = []
        parameters = 0
        for name in ("fresh", "read"):
            path = args.out / "runs" / f"{name}-{size.replace('/', '-')}" / "record.json"
            if not path.exists():
                continue
            record = json.loads(path.read_text(encoding="utf-8"))
            teacher, parameters = record["teacher"]["score"], record["student"]["parameters"]
            cells += [_cell(record["baseline"]), _cell(record["student"])]
        if cells:
            lines.append(f"| {size} | {parameters / 1e6:.2f} M | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Teacher: {teacher}"])


def _cell(model: dict[str, Any]) -> str:
    low, high = model["interval"]
    return f"{100 * np.mean(model['seeds']):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with sst2, wikitext2")
    parser.add_argument("--teacher", required=True, help="a fine-tuned SST-2 model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=1500)
    parser.add_argument(
        "--transfer", type=int, default=12000, help="unlabelled rows; 0: all others"
    )
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    if not args.table:
        for size in args.sizes:
            train(size, args)
    print(table(args))


if __name__ == "__main__":
    main()
