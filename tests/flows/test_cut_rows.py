"""A record says how many rows were longer than what was read of them."""

from __future__ import annotations

from pathlib import Path

import stillhouse as sh
import tiny
from stillhouse.core.progress import Silent


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def cut(said: list[str]) -> list[str]:
    return [text for text in said if " cut: longer" in text]


def told(run: sh.Run, length: int) -> list[str]:
    """What is said where every row is cut."""
    data = run.record.data
    counts = {
        "training rows": data.train,
        "held-out rows": data.held_out,
        "reported rows": data.reported,
    }
    return [
        f"{count:,} of {count:,} {title} cut: longer than {length} tokens"
        for title, count in counts.items()
    ]


def test_fine_tuning_says_what_is_cut(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "bert", labels=["a", "b"])
    data = str(tiny.reviews(tmp_path / "reviews.csv", 200))
    common = {"training": {"steps": 1}, "resamples": 50, "cache": str(tmp_path / "cache")}
    for length in (3, 32):
        notes, out = Notes(), tmp_path / f"{length}"
        rows = {"path": data, "max_length": length}
        run = sh.finetune(base, rows, out=out, progress=notes, **common)
        expected = told(run, 3) if length == 3 else []
        assert cut(run.record.warnings) == cut(notes.said) == expected


def test_a_distillation_says_what_is_cut(tmp_path: Path) -> None:
    teacher = tiny.save(tmp_path / "teacher", "bert", layers=2, labels=tiny.SENTIMENT)
    data = tiny.reviews(tmp_path / "reviews.csv", 200)
    values = tiny.settings(teacher, data, tmp_path / "cache")
    values["data"] = {"path": str(data), "max_length": 3}
    notes = Notes()
    run = sh.distill(**values, out=tmp_path / "run", progress=notes)
    assert set(told(run, 3)) <= set(cut(run.record.warnings))
    assert set(cut(run.record.warnings)) == set(cut(notes.said))
