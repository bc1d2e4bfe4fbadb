"""Quality against latency of what is left of a model: layers, neurons, heads, all three.

command    python benchmarks/removal.py --teacher sst2-teacher --data $STILLHOUSE_DATA/sst2 \
               --out removal
           the full table: --epochs 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Removal"

Each row is a target for the speed of int8 ONNX at batch 1, met by removing what the row names, by
itself ("cut"), trained on gold labels, and distilled from the whole model, with the same steps.
Beside them students of the first rows' kind that are not searched for: the teacher's layers,
evenly spaced. The search looks at training rows only; dev is read once, to report. All models are
timed together, in turns. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import stillhouse as sh
from stillhouse.core.config import DataConfig
from stillhouse.core.console import Terminal
from stillhouse.core.errors import UsageError
from stillhouse.core.rundir import write_json
from stillhouse.evaluation.efficiency import samples, time_all, torch_runner
from stillhouse.export import export_onnx, onnx_runner, onnx_scores, quantize_int8
from stillhouse.measure import model_and_rows

TARGETS = {
    "layers,heads,neurons": (3.0, 2.0, 1.5, 5.0),
    "layers": (2.0, 3.0),
    "neurons": (1.3,),
    "heads": (1.2,),
}
PLAIN = (2, 3, 1)


def names() -> dict[str, tuple[str, float] | int]:
    """Every row of the table: what may go and how fast it is to be, or a plain student's layers."""
    found: dict[str, Any] = {
        f"{what.replace(',', '+')}-{speed:g}": (what, speed)
        for what, speeds in TARGETS.items()
        for speed in speeds
    }
    return found | {f"plain-{layers}": layers for layers in PLAIN}


def cut(name: str, args: argparse.Namespace) -> Path | None:
    """The cut model, untrained; None where nothing reaches the target."""
    what, speed = names()[name]  # pyright: ignore[reportGeneralTypeIssues]
    folder = args.out / "cuts" / name
    refused = args.out / "cuts" / f"{name}.txt"
    if refused.exists():
        return None
    try:
        sh.remove(
            args.teacher,
            str(args.data),
            out=folder,
            recover=None,
            what=what.split(","),
            speedup=speed,
            cache=str(args.out / "cache"),
            progress=Terminal(),
        )
    except UsageError as error:
        if type(error) is not UsageError:  # the data or the model, not the target
            raise
        refused.parent.mkdir(parents=True, exist_ok=True)
        refused.write_text(f"{error}\n", encoding="utf-8")
        print(error)
        return None
    return folder / "cut"


def train(name: str, args: argparse.Namespace) -> None:
    """Distilled, and on gold labels only; both from the cut model, with the same steps."""
    chosen = names()[name]
    if isinstance(chosen, int):
        student: Any = sh.layers(chosen)
    elif (folder := cut(name, args)) is None:
        return
    else:
        student = str(folder)
    sh.distill(
        args.teacher,
        str(args.data),
        student=student,
        out=args.out / "runs" / name,
        seeds=args.seeds,
        training={"lr": args.lr, "epochs": args.epochs},
        evaluation={"efficiency": False},
        export={"onnx": True, "int8": True},
        cache=str(args.out / "cache"),
        progress=Terminal(),
    )


def clocked(args: argparse.Namespace) -> dict[str, Any]:
    """Latency of all finished models at both batches in both runtimes, and the int8 score."""
    path = args.out / "times.json"
    folders = {"teacher": Path(args.teacher)}
    folders |= {name: args.out / "runs" / name for name in names()}
    folders = {name: folder for name, folder in folders.items() if (folder / "record.json").exists()
               or name == "teacher"}  # fmt: skip
    if path.exists() and not args.again:
        held = json.loads(path.read_text(encoding="utf-8"))
        if set(held) == set(folders):
            return held
    found: dict[str, Any] = {name: {} for name in folders}
    ready: dict[str, Any] = {}
    for name, folder in folders.items():
        model, task, data, *_ = model_and_rows(
            str(folder), DataConfig(path=str(args.data)), args.out / "cache", Terminal()
        )
        one, many = samples(data)
        place = args.out / "onnx" / name
        place.mkdir(parents=True, exist_ok=True)
        plain = export_onnx(model, dict(data.batch(np.arange(4)).inputs), place / "model.onnx")
        int8 = onnx_runner(quantize_int8(plain, place / "int8.onnx"))
        answers = task.predictions(onnx_scores(int8, data, task), data)
        found[name]["int8"] = task.score(answers)[task.metric]
        ready[name] = (torch_runner(model), onnx_runner(plain), int8, one, many)
    for place, runtime in enumerate(("torch", "onnx", "onnx-int8")):
        times = time_all({n: (r[place], r[3], r[4]) for n, r in ready.items()}, longest_s=120.0)
        for name, timing in times.items():
            found[name][runtime] = [timing.latency_ms, 32e3 / timing.throughput_per_s]
    write_json(path, found)
    return found


def table(args: argparse.Namespace, times: dict[str, Any]) -> str:
    """One row a model: what is left, scores with and without distillation, milliseconds."""
    head = [
        "model",
        "what is left",
        "parameters",
        "cut",
        "gold",
        "distilled (95 %)",
        "held out",
        "its int8",
    ]
    head += ["torch 1", "torch 32", "onnx 1", "int8 1 (times)", "int8 32 (times)"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    base = times["teacher"]
    for name in ["teacher", *names()]:
        if name not in times:
            continue
        mine = times[name]
        cells = [name, *quality(name, args), f"{mine['int8']:.3f}"]
        cells += [f"{mine['torch'][0]:.2f}", f"{mine['torch'][1]:.1f}", f"{mine['onnx'][0]:.2f}"]
        for batch in (0, 1):
            ms, whole = mine["onnx-int8"][batch], base["onnx-int8"][batch]
            cells.append(f"{ms:.2f} ({whole / ms:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality(name: str, args: argparse.Namespace) -> list[str]:
    """What is left, parameters in millions, and scores: cut, gold labels only, distilled."""
    run = args.out / "runs" / name
    if name == "teacher":
        any_run = next((args.out / "runs").glob("*/record.json"))
        teacher = json.loads(any_run.read_text(encoding="utf-8"))["teacher"]
        return ["", f"{teacher['parameters'] / 1e6:.1f} M", "", "", f"{teacher['score']:.3f}", ""]
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    left, alone = "", ""
    removal = args.out / "cuts" / name / "cut" / "removal.json"
    if removal.exists():
        found = json.loads(removal.read_text(encoding="utf-8"))
        kept = [each for each in found["layers"] if each["heads"]]
        left = ", ".join(f"{each['layer']}: {each['heads']}/{each['neurons']}" for each in kept)
        alone = f"{untrained(name, args):.3f}"
    student, baseline = record["student"], record["baseline"]
    low, high = student["interval"]
    score = f"{student['score']:.3f} ({low:.3f} to {high:.3f})"
    size = f"{student['parameters'] / 1e6:.1f} M"
    gold = f"{baseline['score']:.3f}" if baseline else ""
    return [left, size, alone, gold, score, f"{held_out(run):.3f}"]


def held_out(run: Path) -> float:
    """The kept students' score on the held-out rows, which are more than twice as many as dev's
    and chose one of each student's seven states, nothing else."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    best: dict[int, float] = {}
    for line in map(json.loads, lines):
        if (line["run"], line.get("event")) == ("student", "evaluate"):
            best[line["seed"]] = max(line["score"], best.get(line["seed"], 0.0))
    return float(np.mean(list(best.values())))


def untrained(name: str, args: argparse.Namespace) -> float:
    """The score of the cut model, measured once."""
    path = args.out / "cuts" / name / "score.json"
    if not path.exists():
        found = sh.evaluate(
            args.out / "cuts" / name / "cut", str(args.data), cache=str(args.out / "cache")
        )
        write_json(path, {"score": found[found["metric"]]})
    return json.loads(path.read_text(encoding="utf-8"))["score"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a fine-tuned model's folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(names()), help="these rows only")
    parser.add_argument("--cut-only", action="store_true", help="cut, and stop before training")
    parser.add_argument("--train-only", action="store_true", help="don't time what was trained")
    parser.add_argument("--again", action="store_true", help="time once more")
    parser.add_argument("--table", action="store_true", help="time and print what is there")
    args = parser.parse_args()
    for name in [] if args.table else args.only:
        if not args.cut_only:
            train(name, args)
        elif name.split("-")[0] != "plain":
            cut(name, args)
    if not args.cut_only and not args.train_only:
        print(table(args, clocked(args)))


if __name__ == "__main__":
    main()
