"""Tiny models and data that many tests share. `tiny` makes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("STILLHOUSE_PRECISION", "float32")  # what auto is, on every machine

from jaxtyping import install_import_hook

TENSORS = ("data", "evaluation", "flows", "models", "numerics", "signals", "tasks", "tickets",
           "training", "export", "extract", "guard", "measure", "removal", "runs")  # fmt: skip
install_import_hook([f"stillhouse.{name}" for name in TENSORS], "typecheck.check")

import pytest
import torch

import tiny
from stillhouse.evaluation import efficiency

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quick_costs() -> Iterator[None]:
    """What a model costs is measured as ever, but no longer than must be: its speed in the fewest
    rounds, and its peak memory, which a fresh process sees in seconds, not at all. Tests of both
    don't come here. Of the session, or what fixtures of modules train would be measured at length.
    """
    timed = partial(efficiency.time_all, rounds=efficiency.FEWEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficiency, "peak_memory", lambda folder, tokens: 1)
        patch.setattr(efficiency, "time_all", timed)
        yield


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of what only float32 is exact enough to show, or whose settings need it."""
    monkeypatch.setenv("STILLHOUSE_PRECISION", "float32")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`folders("bert", layers=4)`: the folder of such a model, made once a session."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def make(kind: str = "bert", **settings: object) -> Path:
        key = (kind, repr(sorted(settings.items())))
        if key not in made:
            made[key] = tiny.save(root / f"{kind}-{len(made)}", kind, **settings)
        return made[key]

    return make


@pytest.fixture(scope="session")
def teacher(folders: Callable[..., Path]) -> Path:
    """A BERT classifier of four layers."""
    return folders("bert", layers=4)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 labelled rows in one CSV file."""
    return tiny.reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that tests may share: what is in it is found by content."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def distil(teacher: Path, reviews: Path, cache: Path) -> Callable[..., object]:
    """`distil(training={...})`: the config of a quick distillation."""

    def make(*, data_file: Path | None = None, of: Path | None = None, **changes: object) -> object:
        return tiny.config(of or teacher, data_file or reviews, cache, **changes)

    return make
