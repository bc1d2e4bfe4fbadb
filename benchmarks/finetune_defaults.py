"""Default fine-tuning beside a bag of words, with the defaults as they were and as they are.

command    python benchmarks/finetune_defaults.py --data $STILLHOUSE_DATA --out defaults
           a part: --only tickets,acts; other seeds: --seeds 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Fine-tuning's defaults"

MiniLM (6 layers, 384 wide) is fine-tuned on twelve sets of 2 to 150 classes and 200 to 20,000 rows
(finetune_sets.py) twice: with three epochs at 5e-5 for all, and with nothing set. Both see the same
rows, and so does TF-IDF with logistic regression, which every record has. The defaults were chosen
on training rows of the sets marked *; the others judge them. "said" is whether the record warns
that the model scores below the bag of words, and how many classes it names that are never answered.
A table that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

from finetune_sets import SETS, Set

import stillhouse as sh
from stillhouse.core.console import Terminal
from stillhouse.core.progress import Progress
from stillhouse.core.results import Record
from stillhouse.core.rundir import write_json, write_text
from stillhouse.models.builtin import minilm

DEFAULTS: dict[str, dict[str, Any]] = {
    "before": {"epochs": 3.0, "lr": 5e-5, "select": "best"},
    "after": {},
}
HEAD = (
    "set", "rows", "classes", "commonest", "rarest", "TF-IDF", "before", "said", "after", "said",
    "epochs", "lr", "s before", "s after",
)  # fmt: skip


def counted(folder: Path) -> dict[str, Any]:
    """How large the training part of a set is, and how its classes are spread."""
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    counts = Counter(json.loads(line)["label"] for line in lines)
    return {
        "rows": len(lines),
        "classes": len(counts),
        "commonest": max(counts.values()) / len(lines),
        "rarest": min(counts.values()),
    }


def measured(found: Set, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """A row of the table, read where it was measured before."""
    path = args.out / "rows" / f"{found.name}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    folder = found.write(args.data, args.out / "sets")
    row: dict[str, Any] = {"set": found.name, "chosen": found.chosen, **counted(folder)}
    for name, training in DEFAULTS.items():
        started = time.perf_counter()
        runs = [_run(found.name, folder, name, training, seed, args, progress)
                for seed in range(args.seeds)]  # fmt: skip
        row[name] = _summary([run.record for run in runs])
        held = json.loads((runs[0].out / "manifest.json").read_text(encoding="utf-8"))
        row[name]["auto"] = held["auto"]["training"]
        print(f"{found.name}, {name}: {row[name]['score']:.3f}, TF-IDF {row[name]['floor']:.3f} "
              f"({time.perf_counter() - started:.0f} s)", flush=True)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)
    return row


def _run(
    name: str, folder: Path, which: str, training: dict[str, Any], seed: int,
    args: argparse.Namespace, progress: Progress,
) -> sh.Run:  # fmt: skip
    return sh.finetune(
        minilm(),
        str(folder),
        out=args.out / "runs" / f"{name}-{which}-{seed}",
        training=training,
        seed=seed,
        cache=str(args.out / "cache"),
        progress=progress,
    )


def _summary(records: list[Record]) -> dict[str, Any]:
    """Means over seeds; `below` and `missed` are of all seeds, `silent` those that are worse than
    the bag of words and don't say so."""
    below = [any("a bag of words" in text for text in record.warnings) for record in records]
    floors = [record.floor.score for record in records if record.floor is not None]
    worse = [record.student.score < floors[0] for record in records]
    return {
        "score": mean(record.student.score for record in records),
        "macro_f1": mean(record.student.metrics["macro_f1"] for record in records),
        "floor": floors[0],
        "below": sum(below),
        "missed": max(len(record.student.never_predicted) for record in records),
        "silent": sum(w and not b for w, b in zip(worse, below, strict=True)),
        "seconds": mean(record.timing.student_s for record in records),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in rows:
        before, after = row["before"], row["after"]
        auto = after["auto"]
        lines.append((
            row["set"] + ("*" if row["chosen"] else ""), f"{row['rows']:,}", str(row["classes"]),
            f"{row['commonest']:.2f}", str(row["rarest"]), f"{after['floor']:.3f}",
            f"{before['score']:.3f}", _said(before), f"{after['score']:.3f}", _said(after),
            f"{auto['epochs']:g}", f"{auto['lr']:g}", f"{before['seconds']:.0f}",
            f"{after['seconds']:.0f}",
        ))  # fmt: skip
    silent = sum(row[name]["silent"] for row in rows for name in DEFAULTS)
    better = sum(row["after"]["score"] >= row["after"]["floor"] for row in rows)
    return (
        "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
        + f"\n{better} of {len(rows)} sets are at the bag of words or above it; "
        f"{silent} trainings are below it without a word\n"
    )


def _said(found: dict[str, Any]) -> str:
    words = ["below"] if found["below"] else []
    words += [f"{found['missed']} classes"] if found["missed"] else []
    return ", ".join(words) or "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of sets, with commas")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name]
    chosen = [each for each in SETS if not wanted or each.name in wanted]
    progress, rows = Terminal(), []
    for found in chosen:
        rows.append(measured(found, args, progress))
        write_text(args.out / "table.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
