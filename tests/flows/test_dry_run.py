"""What a family of models can't do is found with two rows, before a folder is claimed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from families import zoo
from stillhouse.core.config import FinetuneConfig
from stillhouse.core.errors import ModelError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.flows.common import set_dropout, state_of
from stillhouse.flows.distill import distill
from stillhouse.flows.dry_run import Trial, failure, precision_for, two_rows
from stillhouse.flows.finetune import finetune

BF16 = {"training": {"precision": "bf16"}, "label": {"precision": "bf16"}}


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.save(tmp_path_factory.mktemp("models") / "deberta", "deberta")


def test_auto_is_float32_where_a_family_has_no_bf16(
    deberta: Path, reviews: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PRECISION", "bf16")
    notes = Notes()
    distill(tiny.config(deberta, reviews, cache), tmp_path / "run", progress=notes)
    assert "precision auto is float32: a deberta can't compute in bf16" in notes.said
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["auto"] == {"precision": "float32"}


def test_bf16_by_name_is_refused_there(
    deberta: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="a deberta can't compute in bf16: set precision"):
        distill(tiny.config(deberta, reviews, cache, **BF16), tmp_path / "run")
    values = tiny.settings(deberta, reviews, cache, **BF16)
    given = {name: values[name] for name in ("data", "training", "cache")}
    with pytest.raises(ModelError, match="a deberta can't compute in bf16"):
        finetune(parse(FinetuneConfig, {**given, "model": str(deberta)}), tmp_path / "tuned")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "tuned").exists()


def test_a_model_that_looks_for_padding_is_told_what_padding_is(
    reviews: Path, cache: Path, tmp_path: Path
) -> None:
    folder = zoo.save(tmp_path / "gpt2", "gpt2", pad_token_id=None)
    with pytest.raises(UsageError, match="a gpt2 needs to know which tokens are padding"):
        distill(tiny.config(folder, reviews, cache), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_is_none_the_worse(
    folders: Callable[..., Path], reviews: Path, cache: Path, tmp_path: Path
) -> None:
    folder = folders("bert", layers=2, pad_token_id=None)
    distill(tiny.config(folder, reviews, cache), tmp_path / "run")


def test_a_family_that_does_not_leave_padding_out_can_learn_but_not_teach(
    reviews: Path, cache: Path, tmp_path: Path
) -> None:
    folder = zoo.save(tmp_path / "fnet", "fnet")
    with pytest.raises(ModelError, match=r"a fnet doesn't leave padding out: .*another teacher"):
        distill(tiny.config(folder, reviews, cache), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    values = tiny.settings(folder, reviews, cache)
    given = {name: values[name] for name in ("data", "training", "cache")}
    notes = Notes()
    finetune(
        parse(FinetuneConfig, {**given, "model": str(folder)}), tmp_path / "tuned", progress=notes
    )
    assert [text for text in notes.said if text.startswith("a fnet doesn't leave padding out")]


def trial(model: nn.Module, **changes: Any) -> Trial:
    return Trial(model, two_rows("classification", tiny.tokenizer(), 20), "float32", **changes)


def test_it_leaves_no_trace() -> None:
    model = tiny.model("electra")
    before = torch.get_rng_state()
    assert failure(trial(model, trains=True)) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_longest_row_is_tried() -> None:
    batch = two_rows("classification", tiny.tokenizer(), 20)
    assert batch.inputs["attention_mask"].sum(1)[0] == 20
    assert 2 < batch.inputs["attention_mask"].sum(1)[1] < 20
    pairs = two_rows("classification", tiny.tokenizer(), 20, pairs=True)
    assert pairs.inputs["token_type_ids"].max() == 1


def test_scores_that_are_no_numbers_are_said() -> None:
    model = tiny.model("electra")
    nn.init.constant_(model.get_parameter("classifier.out_proj.weight"), torch.nan)
    assert (
        failure(trial(model)) == "a electra can't be asked here: its scores are not finite numbers"
    )


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("first line\nsecond line")


def test_what_is_raised_becomes_one_line() -> None:
    assert failure(trial(Broken())) == "a Broken can't be asked here: first line"


def test_where_a_model_is_asked_alone_auto_follows_it_too(
    deberta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PRECISION", "bf16")
    batch = two_rows("classification", tiny.tokenizer(), 20)
    assert precision_for(Trial(zoo.model("deberta"), batch, "auto"), "cpu") == "float32"
    assert precision_for(Trial(tiny.model(), batch, "auto"), "cpu") == "bf16"
    with pytest.raises(ModelError, match="can't compute in bf16"):
        precision_for(Trial(zoo.model("deberta"), batch, "bf16"), "cpu")


def test_dropouts_that_are_modules_are_set_as_such() -> None:
    """Funnel has a dropout of activations that is a module; other families' is a number."""
    model = zoo.model("funnel")
    made = state_of(model)
    set_dropout(model, 0.3)
    shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert shares == {0.3}
    made.restore()
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}
