"""Tickets of five tasks beside dense models and random masks, and moved to each other's tasks.

command    python benchmarks/tickets.py --data $STILLHOUSE_DATA --out tickets --rows 1500
           the full table: --rows 0 --mlm-steps 10000 --mlm-batch 16
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Tickets of an encoder"

After BERT-Tickets (Chen et al. 2020): seven rounds of 10 % of the encoder's weights each, by
magnitude over all matrices of the blocks (not the pooler's, which a masked language model lacks);
the survivors are reset to the pretrained weights each round. Every training of a task has the same
steps. "no rewind" is the same search in which they go on from where they are, so that its last
ticket has trained eight times as long. Held-out rows are of the training rows; dev is read once, to
report. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import stillhouse as sh
from stillhouse.core.console import Terminal

TASKS = ("sst2", "mrpc", "rte", "stsb", "wikitext2")
PARTS = ("rewind", "transfer", "no-rewind")
LEVELS = (5, 6, 7)  # rounds that are shown: 50, 60 and 70 % of the weights gone


def subset(source: Path, folder: Path, rows: int) -> Path:
    """A folder with the first `rows` training rows (0: all) and the dev rows."""
    if not (folder / "dev.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "train.jsonl").write_text("".join(lines[: rows or None]), encoding="utf-8")
        dev = (source / "dev.jsonl").read_text(encoding="utf-8")
        (folder / "dev.jsonl").write_text(dev, encoding="utf-8")
    return folder


def running_text(source: Path, folder: Path) -> Path:
    """All of WikiText's training text and a fifth of its test text, which is reported on."""
    if not (folder / "test.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, share in (("train.txt", 1), ("test.txt", 5)):
            lines = (source / name).read_text(encoding="utf-8").splitlines(keepends=True)
            kept = "".join(lines[: len(lines) // share])
            (folder / name).write_text(kept, encoding="utf-8")
    return folder


def settings(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """The task's own: data and training."""
    if task == "wikitext2":
        training = {"steps": args.mlm_steps, "batch_size": args.mlm_batch, "lr": 5e-4}
        path = running_text(args.data / task, args.out / "data" / task)
        data = {"path": str(path), "max_length": args.mlm_length, "held_out_rows": 200}
        return {"task": "masked_lm", "data": data, "training": training}
    data = subset(args.data / task, args.out / "data" / f"{task}-{args.rows or 'all'}", args.rows)
    lr = 1e-4 if task == "rte" else 5e-5
    return {"data": str(data), "training": {"epochs": args.epochs, "lr": lr}}


def search(task: str, args: argparse.Namespace, *, rewind: bool) -> Path:
    """One task's search, done once."""
    folder = args.out / ("rewind" if rewind else "no-rewind") / task
    own = settings(task, args)
    sh.find_tickets(
        args.model,
        own.pop("data"),
        out=folder,
        seeds=args.seeds,
        training={**own.pop("training"), "select": "last", "evaluations": 4},
        prune={
            "sparsity": 0.7,
            "rounds": 7,
            "schedule": "linear",
            "rewind": 0 if rewind else "none",
            "exclude": ["*.pooler.*"] if task != "wikitext2" else [],
        },
        evaluation={"controls": ["random"] if rewind else []},
        cache=str(args.out / "cache"),
        progress=Terminal(),
        **own,
    )
    return folder


def read(folder: Path) -> dict[str, Any] | None:
    path = folder / "record.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def level(record: dict[str, Any] | None, kind: str, number: int) -> dict[str, Any] | None:
    found = (record or {"levels": []})["levels"]
    mine = [each for each in found if (each["kind"], each["round"]) == (kind, number)]
    return mine[0] if mine else None


def table(args: argparse.Namespace) -> str:
    """Scores and differences from the dense model, as Markdown."""
    rows = [("dense", "rewind", "dense", 0)]
    rows += [(f"ticket, {10 * n} % gone", "rewind", "ticket", n) for n in LEVELS]
    rows += [("no rewind, 70 % gone", "no-rewind", "ticket", 7)]
    rows += [("random mask, 70 % gone", "rewind", "random", 7)]
    lines = ["| model | " + " | ".join(args.tasks) + " |", "|---" * (len(args.tasks) + 1) + "|"]
    for title, folder, kind, number in rows:
        cells = []
        for task in args.tasks:
            record = read(args.out / folder / task)
            cells.append(cell(level(record, kind, number), record))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: dict[str, Any] | None, record: dict[str, Any] | None) -> str:
    """A score, and its difference from the dense model's with the interval; in points, but of a
    perplexity as it is."""
    if found is None or record is None:
        return ""
    by = 1.0 if record["metric"] == "perplexity" else 100.0
    text = f"{by * found['score']:.1f}"
    if (gain := found["gain"]) is not None:
        low, high = gain["interval"]
        text += f": {by * gain['value']:+.1f} ({by * low:+.1f} to {by * high:+.1f})"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with sst2, mrpc, ...")
    parser.add_argument("--model", help="what is pruned (default: MiniLM)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1500, help="training rows a task; 0: all")
    parser.add_argument("--epochs", type=float, default=3.0, help="of each training")
    parser.add_argument("--mlm-steps", type=int, default=150, help="of each masked-LM training")
    parser.add_argument("--mlm-batch", type=int, default=16)
    parser.add_argument("--mlm-length", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    if args.model is None:
        from stillhouse.models.builtin import minilm

        args.model = str(minilm())
    parts = [] if args.table else args.only
    for task in args.tasks if "rewind" in parts else []:
        search(task, args, rewind=True)
    if "transfer" in parts:
        runs: list[str | Path] = [args.out / "rewind" / task for task in args.tasks]
        seeds = list(range(args.seeds))
        sh.transfer_tickets(runs, out=args.out / "transfer", seeds=seeds, progress=Terminal())
    for task in args.tasks if "no-rewind" in parts else []:
        search(task, args, rewind=False)
    print(table(args))


if __name__ == "__main__":
    main()
