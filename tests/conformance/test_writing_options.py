"""Row: an advertised option raises KeyError. The settings of models that write, each in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from writing_runs import RUNS

import stillhouse as sh
import written
from stillhouse.core.config import DistillConfig
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.flows.distill import distill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows in two languages, two teachers for them, a student, and the same for prompts."""
    folder = tmp_path_factory.mktemp("options")
    data = written.pairs(folder / "rows.jsonl", 150, languages=("de", "fr"))
    start = written.fresh(folder / "start", data)
    found = {"data": data, "TEACHER": written.teacher(folder / "teacher", data, start, steps=120)}
    found["OTHER"] = written.teacher(folder / "other", data, start, steps=40)
    shape = {"width": 16, "layers": 1, "heads": 2, "progress": Silent()}
    sh.new("seq2seq", out=folder / "small", tokenizer_from=str(start), **shape)
    sh.new("causal_lm", str(data), out=folder / "writer", vocabulary=290, **shape)
    return {**found, "small": folder / "small", "writer": folder / "writer"}


@pytest.mark.parametrize("name", RUNS)
def test_every_option_trains_a_student(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    text = json.dumps(RUNS[name])
    for which in ("TEACHER", "OTHER"):
        text = text.replace(f'"{which}"', json.dumps(str(made[which])))
    changes: dict[str, Any] = json.loads(text)
    prompts = changes.get("task") == "causal_lm"
    teacher = made["writer"] if prompts else made["TEACHER"]
    student = changes.pop("student", teacher if prompts else made["small"])
    values = written.settings(teacher, made["data"], student, **changes)
    outcome = distill(parse(DistillConfig, values), tmp_path / "run")
    before = outcome.setup.make(0).state_dict()
    after = outcome.student.state_dict()
    assert np.isfinite(outcome.students[0].scores_NK).all()
    still = name == "prompts"  # the student is its own teacher; the gold term moves it all the same
    assert any(not bool((before[key] == after[key]).all()) for key in before) or still
