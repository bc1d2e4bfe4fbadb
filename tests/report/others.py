"""Made-up records of flows that have pages of their own, with names as long as they come."""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.audit_results import (
    Asked,
    AuditRecord,
    AuditTiming,
    Change,
    Copy,
    Leak,
    VictimResult,
)
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


def audit() -> AuditRecord:
    copies = [
        Copy(kind=kind, selection=how, view=view, thief=thief, budget=queries / 1000,
             queries=queries, characters=50 * queries, units=queries, money=queries / 500,
             score=0.8, interval=(0.75, 0.85), seeds=[0.8], agreement=0.9,
             agreement_interval=(0.85, 0.95), retention=0.9)
        for kind, how, view, thief in (
            ("wiki", "random", "probabilities", LONG), ("random", "random", "probabilities", LONG),
            ("wiki", "k-centre", "probabilities", LONG), ("wiki", "random", "label", "small"),
        )
        for queries in (100, 1000, 10_000)
    ]  # fmt: skip
    return AuditRecord(
        task="classification", metric="accuracy", currency="$", enough=0.95, data=DATA,
        victim=VictimResult(name=LONG, score=0.9, interval=(0.88, 0.92), charged=30_000),
        copies=copies,
        changes=[Change(view="probabilities", gain=None, price=3.0),
                 Change(view="label", gain=GAIN, price=None)],
        leaks=[Leak(name="digits", leaks=True, finding=LONG * 3)],
        asked=[Asked(kind="wiki", text=LONG * 8, pair=LONG, answer=LONG)],
        sentence=f"For $3 a stranger gets all. {LONG}",
        timing=AuditTiming(total_s=10.0, victim_s=1.0, thieves_s=9.0), warnings=[LONG * 3],
    )  # fmt: skip


def write(root: Path, name: str, record: Result) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "record.json").write_text(record.model_dump_json(by_alias=True), encoding="utf-8")
    (folder / "config.yaml").write_text(f"flow: {name}\nmodel: {LONG}\n", encoding="utf-8")
    return folder
