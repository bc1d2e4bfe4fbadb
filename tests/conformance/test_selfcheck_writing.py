"""The self-check of models that write passes on sound ones, and names what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stillhouse as sh
import written
from stillhouse import selfcheck_writing as checks
from stillhouse.core.config import DistillConfig
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.selfcheck import Check, selfcheck

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


def test_sound_models_pass(made: dict[str, Path]) -> None:
    found = checked(made)
    assert list(found) == list(checks.CHECKS)
    assert all(check.passed for check in found.values()), found
    assert "the answers of 16 rows and their ends" in found["answers are scored"].detail
    assert "draws as likely" in found["kept = live"].detail


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


def test_answers_without_their_end_or_with_a_piece_missing_are_named(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checks.Some.whole.fget
    assert whole is not None

    def shifted(some: checks.Some) -> Any:
        batch = whole(some)
        return replace(batch, gold_N=torch.roll(batch.gold_N, len(some)))

    monkeypatch.setattr(checks.Some, "whole", property(shifted))
    found = checked(made)["answers are scored"]
    assert not found.passed or "without the end-of-text token" in found.detail


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
