"""Methods that distil what is inside, on five GLUE-like tasks: one table, three seeds, intervals.

command    python benchmarks/inner_layers.py --data $STILLHOUSE_DATA --masked-lm wiki-mlm \
               --out inner --rows 1500
           the full table: --rows 0 --epochs 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Inner layers"

Every method trains the same 3-layer student of the same MiniLM teacher, from the same weights, on
the same rows. One unit is `--epochs` epochs of the task's rows: FT, KD and PKD train for one unit;
MiniLM for two (relations, then KD); TinyBERT for three (two of inner layers, one of predictions),
and so does "FT, 3 units". Differences are paired by row and seed. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

import stillhouse as sh
from stillhouse.core.config import DataConfig, DistillConfig
from stillhouse.core.console import Terminal
from stillhouse.core.settings import parse
from stillhouse.data.sources import load
from stillhouse.flows.prepare import prepare
from stillhouse.numerics import metrics, stats

TASKS = ("sst2", "mrpc", "rte", "stsb", "sick")
INNER = [{"kind": "embedding"}, {"kind": "hidden"}, {"kind": "attention"}]
SOFT = {"kind": "soft", "temperature": 1.0}
MSE = {"kind": "soft", "divergence": "logit_mse"}
GOLD = {"kind": "gold"}


def subset(source: Path, folder: Path, rows: int) -> Path:
    """A folder with the first `rows` training rows (0: all) and the dev rows."""
    if not (folder / "dev.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "train.jsonl").write_text("".join(lines[: rows or None]), encoding="utf-8")
        dev = (source / "dev.jsonl").read_text(encoding="utf-8")
        (folder / "dev.jsonl").write_text(dev, encoding="utf-8")
    return folder


def tinybert(soft: dict[str, Any], unit: int, augment: dict[str, Any] | None, **leave: str) -> Any:
    """TinyBERT's two stages, without one part of them if `leave` names it."""
    out = leave.get("out")
    inner = [term for term in INNER if term["kind"] != out]
    more = {"augment": augment} if augment and out != "augmentation" else {}
    last = GOLD if out == "prediction" else soft
    rows = {"rows": "labelled"} if out == "prediction" else more
    first = {"name": "intermediate", "objective": inner, **more}
    first["training"] = {"steps": 2 * unit, "select": "last"}
    return {"stages": [first, {"name": "prediction", "objective": [last], **rows}]}


def methods(regression: bool, unit: int, augment: dict[str, Any] | None) -> dict[str, Any]:
    """Each row's settings. A regression's soft term is the squared difference of values."""
    soft = MSE if regression else {"kind": "soft", "temperature": 2.0, "weight": 0.9}
    kd = [soft, {**GOLD, "weight": 0.1}]
    far = MSE if regression else {"kind": "soft", "temperature": 10.0, "weight": 0.7}
    one = MSE if regression else SOFT

    def pkd(layers: str) -> dict[str, Any]:
        patience = {"kind": "patience", "layers": layers, "variant": "reference", "weight": 100.0}
        return {"objective": [far, {**GOLD, "weight": 0.3}, patience]}

    relations = [{"kind": "attention_kl"}, {"kind": "relations", "of": ["values"]}]
    minilm = {"name": "relations", "objective": relations, "training": {"select": "last"}}
    whole = tinybert(one, unit, augment)
    found: dict[str, Any] = {
        "KD": {"objective": kd},
        "PKD-last": pkd("last"),
        "PKD-skip": pkd("skip"),
        "MiniLM": {"stages": [minilm, {"name": "distil", "objective": kd}]},
        "TinyBERT": whole,
    }
    for part in ("attention", "hidden", "embedding", "prediction", "augmentation"):
        found[f"without {part}"] = tinybert(one, unit, augment, out=part)
    both = tinybert(one, unit, augment)
    both["stages"][0]["objective"] = [{"kind": "embedding"}]
    found["without attention, hidden"] = both
    return found


def teacher(task: str, args: argparse.Namespace, out: Path) -> Path:
    """The task's teacher, fine-tuned on all its training rows."""
    folder = out / "teachers" / task
    if not (folder / "record.json").exists():
        settings = {"epochs": 3, "lr": 1e-4 if task == "rte" else 5e-5}
        sh.finetune(
            args.model, args.data / task, out=folder, training=settings, cache=str(out / "cache")
        )
    return folder


def unit_of(base: dict[str, Any], epochs: float) -> int:
    rows = len(prepare(parse(DistillConfig, base)).rows.train)
    return max(1, round(epochs * rows / 32))


def run_all(args: argparse.Namespace) -> None:
    """Every task's and method's run, one after another."""
    for task in args.tasks:
        guide = teacher(task, args, args.out)
        data = subset(args.data / task, args.out / "data" / task, args.rows)
        base = {
            "teacher": str(guide),
            "data": {"path": str(data)},
            "student": {"layers": 3},
            "cache": str(args.out / "cache"),
        }
        unit = unit_of(base, args.epochs)
        augment = {"copies": args.copies, "model": args.masked_lm}
        for name, settings in methods(task == "stsb", unit, augment).items():
            if args.only and name not in args.only:
                continue
            sh.distill(
                guide,
                data,
                student=sh.layers(3),
                out=args.out / "runs" / task / name.replace(" ", "-").replace(",", ""),
                seeds=args.seeds,
                baseline=name in ("KD", "TinyBERT"),
                training={"lr": args.lr, "steps": unit, "evaluations": 4},
                evaluation={"efficiency": False},
                export={"onnx": False},
                keep_checkpoints=True,
                cache=str(args.out / "cache"),
                progress=Terminal(),
                **settings,
            )


def answers(run: Path, role: str, regression: bool) -> list[np.ndarray]:
    """What each seed's model answered to the reported rows."""
    paths = sorted((run / "checkpoints").glob(f"{role}-?.safetensors"))
    scores = [load_file(path)["|reported"].numpy() for path in paths]
    return [s[:, 0] if regression else s.argmax(-1) for s in scores]


def gold(data: Path, cache: Path, record: dict[str, Any]) -> np.ndarray:
    """The reported rows' labels, as the runs number them."""
    labels = load(parse(DataConfig, {"path": str(data)}), cache / "rows").reported.labels
    if record["task"] == "regression":
        return labels.astype(float)
    return np.array([record["data"]["labels"].index(str(label)) for label in labels])


def table(args: argparse.Namespace) -> str:
    """Scores, and differences from one of the rows over tasks, as Markdown."""
    names = ["FT", *methods(False, 1, None), "FT, 3 units"]
    scores: dict[str, dict[str, str]] = {name: {} for name in names}
    gains: dict[str, list[stats.PairedGain]] = {name: [] for name in names}
    for task in args.tasks:
        folder, data = args.out / "runs" / task, args.out / "data" / task
        record = json.loads((folder / "KD" / "record.json").read_text(encoding="utf-8"))
        regression = record["task"] == "regression"
        metric = stats_metric(regression)
        gold_N = gold(data, args.out / "cache", record)
        plain = answers(*place(folder, args.against), regression)
        for name in names:
            run, role = place(folder, name)
            if not (run / "record.json").exists():
                continue
            mine = answers(run, role, regression)
            each = [metric(a, gold_N) for a in mine]
            scores[name][task] = f"{100 * np.mean(each):.1f}"
            if name != args.against:
                rng = np.random.default_rng(0)
                gains[name].append(
                    stats.paired_gain(metric, mine, plain, gold_N, rng=rng, resamples=2000)
                )
    head = "| method | " + " | ".join(args.tasks) + f" | mean | minus {args.against} (95 %) |"
    lines = [head, "|---|" + "---|" * (len(args.tasks) + 2)]
    for name in names:
        row = [scores[name].get(task, "") for task in args.tasks]
        if not any(row):
            continue
        mean = np.mean([float(v) for v in row if v])
        lines.append(f"| {name} | " + " | ".join(row) + f" | {mean:.1f} | {over(gains[name])} |")
    return "\n".join(lines)


def place(folder: Path, name: str) -> tuple[Path, str]:
    if name == "FT":
        return folder / "KD", "baseline"
    if name == "FT, 3 units":
        return folder / "TinyBERT", "baseline"
    return folder / name.replace(" ", "-").replace(",", ""), "student"


def stats_metric(regression: bool) -> Any:
    return metrics.pearson if regression else metrics.accuracy


def over(gains: list[stats.PairedGain]) -> str:
    """The mean gain over tasks; these are independent, so half-widths add in squares."""
    if not gains:
        return ""
    mean = np.mean([gain.value for gain in gains])
    half = np.sqrt(sum(((g.interval[1] - g.interval[0]) / 2) ** 2 for g in gains)) / len(gains)
    return f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with sst2, mrpc, ...")
    parser.add_argument("--model", help="what the teachers are fine-tuned from (default: MiniLM)")
    parser.add_argument("--masked-lm", help="a masked language model that augments")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1500, help="training rows a task; 0: all")
    parser.add_argument("--epochs", type=float, default=3.0, help="of one unit")
    parser.add_argument("--copies", type=int, default=5, help="variants a row")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--only", nargs="+", help="these methods only")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--against", default="FT", help="the row that others are compared with")
    args = parser.parse_args()
    if args.model is None:
        from stillhouse.models.builtin import minilm

        args.model = str(minilm())
    if not args.table:
        run_all(args)
    print(table(args))


if __name__ == "__main__":
    main()
