"""The demo: a support-ticket router, from pretrained encoder to exported student."""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.config import DistillConfig, FinetuneConfig
from stillhouse.core.console import Terminal
from stillhouse.core.rundir import write_text
from stillhouse.core.settings import parse
from stillhouse.data.builtin import tickets
from stillhouse.models.builtin import minilm
from stillhouse.runs import Run, run_distill, run_finetune

LABELLED = 200  # of the tickets' labels are the student's; the teacher has had them all
UNLABELLED = 2000


def run_demo(out: Path, *, model: str | None = None, cache: str | None = None) -> Run:
    """Fine-tunes a teacher on the labelled tickets, and distils two layers from few labels and many
    tickets without."""
    progress = Terminal()
    progress.note("1/2  a teacher: fine-tuning the encoder on the labelled tickets")
    data = {"path": str(tickets.folder())}
    cache = cache or str(out / "cache")
    teacher = run_finetune(
        parse(
            FinetuneConfig,
            {
                "model": model or str(minilm()),
                "data": data,
                "cache": cache,
                "training": {"epochs": 6, "lr": 1e-4},
            },
        ),
        out / "teacher",
        progress=progress,
    )
    unlabelled = out / "unlabelled.txt"
    if not unlabelled.exists():
        texts = tickets.unlabelled(UNLABELLED, seed=0)
        write_text(unlabelled, "".join(" ".join(text.split()) + "\n" for text in texts))
    progress.note(
        f"2/2  a student of two layers, which has {LABELLED} of the labels, with and without the "
        "teacher's answers"
    )
    return run_distill(
        parse(
            DistillConfig,
            {
                "teacher": str(teacher.out),
                "data": {**data, "unlabelled": str(unlabelled), "labelled_rows": LABELLED},
                "student": {"layers": 2},
                "cache": cache,
                "training": {"epochs": 1.5, "lr": 4e-4, "batch_size": 16},
            },
        ),
        out / "student-run",
        progress=progress,
    )
