"""The self-check of models that write passes on sound ones, and names what is broken."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stillhouse as sh
import written
from stillhouse import selfcheck_writing as checks
from stillhouse.core.config import DistillConfig
from stillhouse.core.errors import RunError, StillhouseError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.core.types import Batch
from stillhouse.flows.prepare import prepare
from stillhouse.selfcheck import Check, selfcheck
from stillhouse.tasks.written import Written

Checked = Callable[..., dict[str, Check]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("selfcheck")
    data = written.pairs(folder / "rows.jsonl", 60)
    teacher = written.fresh(folder / "teacher", data)
    small = folder / "small"
    sh.new("seq2seq", out=small, tokenizer_from=str(teacher), width=16, layers=1, heads=2,
           progress=Silent())  # fmt: skip
    other = written.fresh(folder / "other", data, vocabulary=300, width=16)
    return {"data": data, "teacher": teacher, "small": small, "other": other, "folder": folder}


def checked(made: dict[str, Path], student: str = "small", **changes: Any) -> dict[str, Check]:
    given = written.settings(made["teacher"], made["data"], made[student], **changes)
    return {check.name: check for check in selfcheck(parse(DistillConfig, given))}


def looked_at(made: dict[str, Path], like: checks.Writers | None = None) -> checks.Writers:
    """What the checks look at; with the teacher of another."""
    values = written.settings(made["teacher"], made["data"], made["small"])
    setup = prepare(parse(DistillConfig, values), progress=Silent())
    if like is not None:
        setup.teacher = like.setup.teacher
    folder = Path(tempfile.mkdtemp(dir=made["folder"]))
    return checks.writers(setup, setup.make(0).eval(), folder)


def test_sound_models_pass(made: dict[str, Path]) -> None:
    found = checked(made)
    assert list(found) == list(checks.CHECKS)
    assert all(check.passed for check in found.values()), found
    assert "the answers of 16 rows and their ends" in found["answers are scored"].detail
    assert "have draws as likely" in found["kept = live"].detail


def test_another_tokenizer_is_for_sequence_level(made: dict[str, Path]) -> None:
    found = checked(
        made,
        "other",
        stages=[{"name": "all", "targets": "decoded", "objective": [{"kind": "gold"}]}],
    )
    assert all(check.passed for check in found.values()), found
    assert "sequence level only" in found["tokenizers"].detail
    assert "not looked at" in found["kept = live"].detail


@pytest.mark.slow
def test_a_language_model_on_conversations_and_on_running_text(
    made: dict[str, Path], tmp_path: Path
) -> None:
    rows, text = tmp_path / "chat.jsonl", tmp_path / "text.txt"
    pairs = [json.loads(line) for line in made["data"].read_text().splitlines()]
    turns = [
        [{"role": "user", "content": p["source"]}, {"role": "assistant", "content": p["target"]}]
        for p in pairs
    ]
    rows.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    text.write_text("".join(f"{p['target']}. {p['source']}.\n" for p in pairs * 40))
    shape = {"width": 16, "layers": 2, "heads": 2, "vocabulary": 300}
    sh.new("causal_lm", str(rows), out=tmp_path / "m", progress=Silent(), **shape)
    for data in (rows, text):
        values = written.settings(tmp_path / "m", data, {"layers": 1}, task="causal_lm")
        found = selfcheck(parse(DistillConfig, values))
        assert all(check.passed for check in found), found


def nothing(data: Written, row: int) -> np.ndarray:
    return np.empty(0, np.int64)


def no_end(data: Written, row: int) -> np.ndarray:
    return data.tokens.ids[row][:-1]


def a_piece_missing(data: Written, row: int) -> np.ndarray:
    return data.tokens.ids[row][1:]


def the_source_too(data: Written, row: int) -> np.ndarray:
    return np.concatenate([data.tokens.before[row], data.tokens.ids[row]])


def anothers(data: Written, row: int) -> np.ndarray:
    return data.tokens.ids[(row + 1) % 16]


@pytest.mark.parametrize("broken", [nothing, no_end, a_piece_missing, the_source_too, anothers])
def test_other_tokens_than_the_answers_are_named(
    made: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Written, int], np.ndarray],
) -> None:
    pair = looked_at(made)
    assert isinstance(pair.some.data, Written)
    data = pair.some.data
    own = [np.asarray(broken(data, row)) for row in range(16)]

    def batch(rows: np.ndarray, rng: object = None) -> Batch:
        return data.rewritten(rows, [own[row] for row in rows])

    lengths = np.array([len(ids) for ids in own])
    monkeypatch.setattr(checks.Some, "batch", lambda self, rows, rng=None: batch(rows))
    monkeypatch.setattr(checks.Some, "scored_counts", lambda self, rows: lengths[rows])
    with pytest.raises(StillhouseError, match=r"the loss sees|has an answer to learn"):
        checks.answers_are_scored(pair)


@pytest.mark.usefixtures("in_float32")
def test_anothers_distributions_are_told_from_a_teachers_that_knows_something(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "too alike" in checks.kept_is_live(looked_at(made))  # its weights are as drawn
    sure = looked_at(made)
    with torch.no_grad():
        for weight in sure.setup.teacher.parameters():
            weight.mul_(3)
    assert "too alike" not in checks.kept_is_live(sure)
    own = checks.DistributionCache.record
    monkeypatch.setattr(
        checks.DistributionCache,
        "record",
        lambda self, scores_NK, key: own(self, scores_NK.flip(0), key),
    )
    with pytest.raises(RunError, match="not this teacher's"):
        checks.kept_is_live(looked_at(made, sure))


def test_gradients_that_are_nothing_are_no_agreement(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = looked_at(made)
    for value in (math.nan, 0.0):
        monkeypatch.setattr(
            checks.Writers, "gradient", lambda *_, value=value, **__: torch.full((3,), value)
        )
        with pytest.raises(StillhouseError, match="trains nothing"):
            checks.in_parts(pair)


def test_few_rows_that_fill_the_positions_are_looked_at(tmp_path: Path) -> None:
    (folder := tmp_path / "rows").mkdir()
    for name in ("dev", "test"):
        written.pairs(folder / f"{name}.jsonl", 30, seed=len(name))
    long = [{"source": f"{word} " * 9, "target": f"{word} " * 9} for word in ("rot", "blau")]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    model = written.fresh(tmp_path / "m", written.pairs(tmp_path / "all.jsonl", 60), positions=9)
    values = written.settings(model, folder, {"layers": 1})
    found = {check.name: check for check in selfcheck(parse(DistillConfig, values))}
    assert all(check.passed for check in found.values()), found
    assert "2 rows and their ends, 2 of them cut" in found["answers are scored"].detail
    assert "fill all of the student's positions" in found["padding changes nothing"].detail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("micro-batches change nothing", "totals"),
        ("the loss in parts = all at once", "parts"),
        ("padding changes nothing", "mask"),
        ("the teacher is steady", "dropout"),
    ],
)
def test_what_is_broken_is_named(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, broken: str
) -> None:
    if broken == "totals":
        own = checks.plain_step
        monkeypatch.setattr(
            checks,
            "plain_step",
            lambda *given, totals, **more: own(
                *given, totals={**totals, "scored": totals["scored"] // len(given[1])}, **more
            ),
        )
    elif broken == "parts":
        monkeypatch.setattr("stillhouse.training.chunked._multiply_", lambda *_: None)
    elif broken == "mask":
        own_run = checks.run

        def unmasked(model: Any, batch: Any, **more: Any) -> Any:
            inputs = dict(batch.inputs)
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
            return own_run(model, replace(batch, inputs=inputs), **more)

        monkeypatch.setattr(checks, "run", unmasked)
    else:
        own_scores = checks.LiveTeacher.scores
        monkeypatch.setattr(
            checks.LiveTeacher,
            "scores",
            lambda self, batch: own_scores(self, batch) + 0.01 * torch.rand(1),
        )
    found = checked(made)
    assert not found[name].passed, found[name]
