"""Made-up records of flows that have pages of their own, with names as long as they come."""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.results import DataSummary, Gain, Result
from stillhouse.core.ticket_results import (
    Cell,
    Kind,
    Level,
    Overlap,
    Storage,
    TicketsRecord,
    TicketTiming,
    TransferRecord,
)

GAIN = Gain(value=-0.01, interval=(-0.03, 0.01), p_value=0.4)
DATA = DataSummary(
    train=100, labelled=100, unlabelled=0, held_out=10, reported=50, labels=["a", "b"]
)
LONG = "long" * 20


def level(kind: Kind, number: int) -> Level:
    return Level(
        kind=kind, round=number, remaining=1 - 0.2 * number, kept=1000 - 200 * number,
        score=0.9 - 0.01 * number, interval=(0.85, 0.95), seeds=[0.9, 0.88],
        metrics={"accuracy": 0.9}, early_steps=[10, 12], early_losses=[0.3, 0.31],
        gain=None if kind == "dense" else GAIN,
    )  # fmt: skip


def tickets() -> TicketsRecord:
    kinds: tuple[Kind, ...] = ("ticket", "random", "reinitialised")
    return TicketsRecord(
        task="classification", metric="accuracy", data=DATA, model=LONG, parameters=5000,
        prunable=1000, score_name="magnitude", rewind=0,
        levels=[level("dense", 0), *(level(k, n) for n in (1, 2, 3) for k in kinds)],
        densities={f"bert.encoder.layer.{n}.{LONG}.weight": [0.8, 0.6, 0.4] for n in range(9)},
        overlaps=[Overlap(round=n, found=0.7, expected=0.5) for n in (1, 2, 3)],
        storage=Storage(dense=20_000, sparse=9_000), shipped_seed=0, sentence=f"Tickets. {LONG}",
        timing=TicketTiming(total_s=10.0, steps=100), warnings=[LONG * 3],
    )  # fmt: skip


def transfer() -> TransferRecord:
    names = ["sst2", LONG, "wiki"]
    return TransferRecord(
        names=names, metrics=["accuracy", "pearson", "accuracy"], remaining=[0.3, 0.3, 0.3],
        dense=[0.9, 0.8, 0.5],
        cells=[
            Cell(source=s, target=t, remaining=0.3, score=0.8, interval=(0.7, 0.9),
                 seeds=[0.8, 0.8], gain=None if s == t else GAIN)
            for s in names for t in names
        ],
        overlaps=[[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]], sentence="Transfer.",
        timing=TicketTiming(total_s=10.0, steps=100), warnings=[LONG],
    )  # fmt: skip


def write(root: Path, name: str, record: Result) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "record.json").write_text(record.model_dump_json(by_alias=True), encoding="utf-8")
    (folder / "config.yaml").write_text(f"flow: {name}\nmodel: {LONG}\n", encoding="utf-8")
    return folder
