"""What copies of models cost: five tasks asked by strangers, with what is shown, by whom, and how.

command    python benchmarks/extraction.py --teacher sst2-teacher --data $STILLHOUSE_DATA \
               --out audits
           the full tables: --few 0.02 0.05 0.1 --budgets 0.2 0.5 1 2 5 10 --large-seeds 3 \
               --pair-budgets 0.1 0.2 0.5 1 2 --qa-budgets 0.1 0.2 0.5 1 2 --qa-seeds 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Stolen"

After Krishna et al. 2020. Victims are MiniLM fine-tuned here; strangers begin with the same public
encoder, three epochs on the answers. Budgets are in sizes of each task's training set. Dev is the
owner's measure of both; no thief sees it, or any training row. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import stillhouse as sh
from stillhouse.core.console import Terminal
from stillhouse.models.builtin import minilm

TRAINING = {"lr": 1e-4, "epochs": 3.0}
QA = {"lr": 2e-4, "epochs": 3.0}


def victim(name: str, args: argparse.Namespace) -> str:
    """A task's fine-tuned model, made once."""
    if name == "sst2":
        return str(args.teacher)
    out = args.out / "victims" / name
    lr = {"squad": 2e-4, "boolq": 5e-5}.get(name, 1e-4)
    sh.finetune(
        str(minilm()), str(args.data / name), out=out, training={"lr": lr, "epochs": args.epochs},
        cache=str(args.out / "cache"), progress=Terminal(),
    )  # fmt: skip
    return str(out)


def audits(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every audit's settings, by its name; the first word is the task."""
    corpus = str(args.data / "wikitext2")
    thief = {"model": str(minilm()), "training": TRAINING}
    half = {"source": str(minilm()), "layers": 3, "training": TRAINING, "name": "half of it"}
    fresh = {
        "source": str(minilm()),
        "fresh": True,
        "training": TRAINING | {"lr": 5e-4},
        "name": "not pretrained",
    }
    both = {"kinds": ["wiki", "random"], "corpus": corpus}
    sst2 = both | {"of": 67_349}
    chosen = ["uncertainty", "k-centre", "both"]
    qa = both | {"budgets": args.qa_budgets}
    yes_no = {"kinds": ["wiki"], "form": "yes-no", "passage": "text"}
    return {
        "sst2": {
            "queries": sst2 | {"budgets": args.few, "choose": chosen},
            "views": ["probabilities", "label"],
            "thieves": [thief | {"name": "the same encoder"}, half, fresh],
        },
        "sst2-large": {
            "queries": sst2 | {"budgets": args.budgets},
            "thieves": [thief],
            "seeds": args.large_seeds,
        },
        "sick": {"queries": both | {"budgets": args.pair_budgets}, "thieves": [thief]},
        "mnli": {"queries": both | {"budgets": args.pair_budgets}, "thieves": [thief]},
        "boolq": {
            "queries": qa | yes_no,
            "data": {"max_length": 256},
            "thieves": [thief | {"training": TRAINING | {"batch_size": 16}}],
            "seeds": args.qa_seeds,
        },
        "squad": {
            "queries": qa,
            "thieves": [thief | {"training": QA | {"batch_size": 16}}],
            "seeds": args.qa_seeds,
        },
    }


def run(name: str, settings: dict[str, Any], args: argparse.Namespace) -> None:
    task = name.partition("-")[0]
    data = {"path": str(args.data / task), **settings.get("data", {})}
    rest = {"seeds": args.seeds} | {key: settings[key] for key in settings if key != "data"}
    sh.audit(
        victim(task, args), data, out=args.out / name, cache=str(args.out / "cache"),
        progress=Terminal(), **rest,
    )  # fmt: skip


def table(name: str, args: argparse.Namespace) -> str:
    """One audit as Markdown: a row a line of its sweep, a column a budget."""
    path = args.out / name / "record.json"
    if not path.exists():
        return ""
    record = json.loads(path.read_text(encoding="utf-8"))
    budgets = list(dict.fromkeys(copy["budget"] for copy in record["copies"]))
    low, high = record["victim"]["interval"]
    lines = [
        f"{name}: victim {record['victim']['score']:.3f} ({low:.3f} to {high:.3f}), "
        f"{record['metric']}; {record['timing']['total_s'] / 60:.0f} minutes",
        "",
        "| queries | shown | thief | " + " | ".join(f"{b:g}" for b in budgets) + " |",
        "|---" * (3 + len(budgets)) + "|",
    ]
    found: dict[tuple[str, ...], list[str]] = {}
    for copy in record["copies"]:
        how = "" if copy["selection"] == "random" else f", {copy['selection']}"
        low, high = copy["interval"]
        cell = f"{copy['score']:.3f} ({low:.3f} to {high:.3f}); {copy['agreement']:.3f}"
        found.setdefault((copy["kind"] + how, copy["view"], copy["thief"]), []).append(cell)
    lines += ["| " + " | ".join([*line, *cells]) + " |" for line, cells in found.items()]
    return "\n".join([*lines, "", record["sentence"], ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a model fine-tuned on SST-2")
    parser.add_argument("--data", type=Path, required=True, help="the folder with sst2, sick, ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=3.0, help="of the victims")
    parser.add_argument("--few", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0])
    parser.add_argument("--pair-budgets", type=float, nargs="+", default=[0.2, 1.0])
    parser.add_argument("--qa-budgets", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--large-seeds", type=int, default=1)
    parser.add_argument("--qa-seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="these audits")
    parser.add_argument("--table", action="store_true", help="print what is there")
    args = parser.parse_args()
    for name, settings in audits(args).items():
        if not args.table and name in (args.only or [name]):
            run(name, settings, args)
        if shown := table(name, args):
            print(shown)


if __name__ == "__main__":
    main()
