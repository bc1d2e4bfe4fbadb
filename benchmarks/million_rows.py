"""A million unlabelled rows: when labelling and training start, and the peak of memory.

    python benchmarks/million_rows.py --teacher TEACHER --rows 1000000 --out million.json

Generates support tickets (one in twelve of a million repeats another; those are left out), runs
`stillhouse distill` on them in a process of its own, and reads that process's high-water mark.
TEACHER is a classifier of the demo's eight intents, such as stillhouse-demo/teacher.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from stillhouse.core.manifest import manifest
from stillhouse.core.rundir import write_json
from stillhouse.data.builtin import tickets


def generate(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in tickets.unlabelled(rows, seed=1):
            file.write(" ".join(text.split()) + "\n")


def peak_bytes(process: int) -> int:
    """A process's high-water mark; 0 once it is gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def watch(process: subprocess.Popen[str], cache: Path, out: Path, found: dict[str, float]) -> None:
    """Notes the peak, and when the first answer and the first training step are on disk."""
    started = time.perf_counter()
    while process.poll() is None:
        found["peak_gb"] = max(found.get("peak_gb", 0.0), peak_bytes(process.pid) / 1e9)
        if "first_answer_s" not in found and any(
            p.stat().st_size for p in cache.glob("answers/*/shard-*.bin")
        ):
            found["first_answer_s"] = time.perf_counter() - started
            found["peak_gb_at_first_answer"] = found["peak_gb"]
        if "first_step_s" not in found and (out / "metrics.jsonl").exists():
            found["first_step_s"] = time.perf_counter() - started
            found["peak_gb_at_first_step"] = found["peak_gb"]
        time.sleep(0.05)
    found["total_s"] = time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("million.json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "unlabelled.txt", asked.rows)
        command = [
            sys.executable,
            "-m",
            "stillhouse",
            "distill",
            "--teacher",
            asked.teacher,
            "--data",
            str(tickets.folder()),
            "--unlabelled",
            str(folder / "unlabelled.txt"),
            "--student",
            f"layers={asked.layers}",
            "--cache",
            str(folder / "cache"),
            "--out",
            str(folder / "run"),
            "--seeds",
            "1",
            "--no-baseline",
            "--set",
            f"training.steps={asked.steps}",
            "--set",
            "export.onnx=false",
            "--json",
        ]
        found: dict[str, float] = {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            watcher = threading.Thread(
                target=watch, args=(process, folder / "cache", folder / "run", found)
            )
            watcher.start()
            printed = process.communicate()[0]
            watcher.join()
        if process.returncode:
            return 1
        rows = json.loads(printed)["data"]["train"]
    write_json(asked.out, manifest(command=sys.argv, rows=rows, measured=found))
    for key, value in found.items():
        print(f"{key:<26} {value:,.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
