"""A ticket's folder is fine-tuned as what it is: what its masks leave out stays 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import stillhouse as sh
import tiny
from stillhouse.core.errors import ModelError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.models.load import load_classifier
from stillhouse.numerics.masks import density
from stillhouse.tickets.prunable import prunable
from stillhouse.training.sparse import save_masks

SHORT = {"steps": 4, "batch_size": 16, "lr": 1e-2, "precision": "float32"}


@pytest.fixture
def ticket(tmp_path: Path) -> Path:
    tiny.save(tmp_path / "ticket")
    tiny.reviews(tmp_path / "reviews.csv")
    weights = prunable(load_classifier(str(tmp_path / "ticket")))
    masks = {name: torch.rand(weight.shape) < 0.4 for name, weight in weights.items()}
    save_masks(tmp_path / "ticket" / "masks.safetensors", masks)
    return tmp_path / "ticket"


def train(ticket: Path, out: str, **settings: Any) -> sh.Run:
    return sh.finetune(
        ticket,
        ticket.parent / "reviews.csv",
        out=ticket.parent / out,
        training=SHORT,
        cache=str(ticket.parent / "cache"),
        progress=Silent(),
        **settings,
    )


def zeros(run: sh.Run, masks: dict[str, torch.Tensor]) -> float:
    """The share of what the masks leave out that is 0 in the run's model."""
    state = load_classifier(str(run.out)).state_dict()
    out = torch.cat([state[name][~mask] for name, mask in masks.items()])
    return float((out == 0).float().mean())


def test_the_masks_of_a_models_own_folder_are_held_and_passed_on(ticket: Path) -> None:
    masks = sh.load_masks(ticket)
    run = train(ticket, "again")
    assert zeros(run, masks) == 1
    passed = sh.load_masks(run.out / "masks.safetensors")
    assert all(torch.equal(passed[name], mask) for name, mask in masks.items())
    assert sh.finetune(
        ticket, ticket.parent / "reviews.csv", out=run.out, training=SHORT,
        cache=str(ticket.parent / "cache"), progress=Silent(),
    ).record == run.record  # fmt: skip


def test_none_trains_every_weight(ticket: Path) -> None:
    masks = sh.load_masks(ticket)
    run = train(ticket, "dense", masks="none")
    assert zeros(run, masks) < 0.01
    assert not (run.out / "masks.safetensors").exists()


def test_other_masks_are_those_of_a_file_or_a_folder(ticket: Path) -> None:
    other = {name: ~mask for name, mask in sh.load_masks(ticket).items()}
    (ticket.parent / "other").mkdir()
    save_masks(ticket.parent / "other" / "masks.safetensors", other)
    run = train(ticket, "run", masks=str(ticket.parent / "other"))
    assert zeros(run, other) == 1
    assert density(sh.load_masks(run.out)) == density(other)
    save_masks(ticket.parent / "other" / "masks.safetensors", sh.load_masks(ticket))
    with pytest.raises(UsageError, match="masks"):
        train(ticket, "run", masks=str(ticket.parent / "other"))


def test_masks_that_are_missing_or_do_not_fit_are_refused_before_anything(ticket: Path) -> None:
    with pytest.raises(ModelError, match="no masks"):
        train(ticket, "run", masks=str(ticket.parent / "nowhere.safetensors"))
    save_masks(ticket / "masks.safetensors", {"bert.other": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ModelError, match="another architecture"):
        train(ticket, "run")
    assert not (ticket.parent / "run").exists()
