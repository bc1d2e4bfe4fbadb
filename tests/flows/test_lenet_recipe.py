"""The LeNet recipe on made-up digits: rounds, counts, masks, resuming."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import override, parse
from stillhouse.training import checkpoint

SMALL = ["iterations=40", "every=10", "rounds=3", "trials=2", "widths=[12,8]", "validation=50",
         "batch_size=20", "lr=1e-2"]  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    path = Path(__file__).parents[2] / "recipes" / "lenet_tickets.py"
    spec = importlib.util.spec_from_file_location("lenet_tickets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lenet_tickets"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(10, 6, 6))
    for name, count in (("train", 300), ("t10k", 100)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = (120 * (patterns[labels] + 0.7 * rng.normal(size=(count, 6, 6)))).clip(0, 255)
        for kind, values in (("images-idx3", images.astype(np.uint8)), ("labels-idx1", labels)):
            shape = b"".join(n.to_bytes(4, "big") for n in values.shape)
            raw = bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(raw))
    return folder


def settings(recipe: ModuleType, *changes: str) -> Any:
    values = override(recipe.Settings().model_dump(mode="json"), SMALL)
    return parse(recipe.Settings, override(values, changes))


@pytest.fixture(scope="module")
def done(recipe: ModuleType, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lenet") / "run"
    recipe.run(settings(recipe), digits, out, progress=Silent())
    return out


def rounds(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / "rounds" / f"{k}.json").read_text()) for k in range(4)]


def test_every_round_has_its_networks_and_counts(done: Path) -> None:
    found = rounds(done)
    assert [len(each["members"]) for each in found] == [2, 6, 6, 6]
    assert found[0]["kept"] == [None, None]
    for k, each in enumerate(found[1:], start=1):
        expected = [round(0.8**k * 12 * 36), round(0.8**k * 8 * 12), round(0.9**k * 80)]
        for kept in each["kept"]:
            assert sum(kept) == pytest.approx(sum(expected), abs=1)
            assert kept == pytest.approx(expected, abs=1)


def test_tickets_keep_the_largest_weights_of_the_round_before(
    recipe: ModuleType, done: Path
) -> None:
    for k in range(1, 4):
        before = checkpoint.load(done / "rounds" / f"{k - 1}.safetensors")
        assert before is not None
        masks = recipe.tickets_of(k, settings(recipe), 36, done)
        for name, mask in masks.items():
            for trial in range(2):
                weight = before[0][name][trial].abs()
                assert weight[mask[trial]].min() >= weight[~mask[trial]].max()


def test_controls_differ_from_the_ticket(recipe: ModuleType, done: Path) -> None:
    asked = settings(recipe)
    members = recipe.members_of(2, asked)
    masks = recipe.masks_of(2, members, recipe.tickets_of(2, asked, 36, done))
    first = recipe.begin(members, asked, 36)
    kinds = {member.kind: place for place, member in enumerate(members) if member.trial == 0}
    ticket, fresh, random = (kinds[k] for k in ("ticket", "reinitialised", "random"))
    mask, weight = masks["weights.0"], first.weights[0]
    assert torch.equal(mask[ticket], mask[fresh])
    assert not torch.equal(mask[ticket], mask[random])
    assert mask[ticket].sum() == mask[random].sum()
    assert torch.equal(weight[ticket], weight[random])
    assert not torch.equal(weight[ticket], weight[fresh])
    dense = recipe.begin(recipe.members_of(0, asked), asked, 36)
    assert torch.equal(dense.weights[0][0], weight[ticket])


def test_members_of_a_trial_see_the_same_images_and_trials_others(
    recipe: ModuleType, digits: Path
) -> None:
    asked = settings(recipe)
    read = recipe.read_digits(digits, asked)
    data = recipe.Orders(read, recipe.members_of(1, asked))
    images = data.batch(np.arange(20)).inputs["vectors"].view(6, 20, 36)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    for trial in range(2):
        assert not set(read.train[trial]) & set(read.validation[trial])
        assert len(read.train[trial]) + len(read.validation[trial]) == 300


def test_the_early_stop_is_the_least_validation_loss(recipe: ModuleType, done: Path) -> None:
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    for number, found in enumerate(rounds(done)):
        seen = [x for x in lines if x.get("event") == "validate" and x["run"] == f"round {number}"]
        losses = np.array([line["losses"] for line in seen])
        steps = np.array([line["step"] for line in seen])
        assert steps.tolist() == [10, 20, 30, 40]
        assert found["stop"] == steps[losses.argmin(0)].tolist()
        np.testing.assert_allclose(found["loss"], losses.min(0), rtol=1e-6)


def test_a_killed_run_ends_with_the_same_numbers(
    recipe: ModuleType, digits: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = recipe.train_round, 0

    def dying(number: int, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(number, *args)

    monkeypatch.setattr(recipe, "train_round", dying)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(settings(recipe), digits, tmp_path / "run", progress=Silent())
    recipe.run(settings(recipe), digits, tmp_path / "run", progress=Silent())
    for mine, theirs in zip(rounds(tmp_path / "run"), rounds(done), strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_table_and_the_claims_are_of_what_was_seen(recipe: ModuleType, done: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    kinds = [(row["round"], row["kind"]) for row in results["rows"]]
    assert kinds[0] == (0, "dense")
    assert len(kinds) == 1 + 3 * 3
    assert "| 81.2 % | ticket |" in (done / "results.md").read_text()
    assert results["claims"][-1].startswith("The ticket on fresh weights scores lower")


def test_too_many_validation_images_are_refused(
    recipe: ModuleType, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="300 images can't be kept of 300"):
        recipe.run(settings(recipe, "validation=300"), digits, tmp_path / "x", progress=Silent())
