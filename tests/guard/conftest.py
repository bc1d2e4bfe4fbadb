"""A tiny guarded model, registries, and services as processes of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgres
import pytest
from guarded import SECRET, Made

import tiny
from stillhouse.core.settings import parse
from stillhouse.guard import registry as registry_module
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import ServedModel
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import GuardConfig


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return ServedModel(tiny.save(tmp_path_factory.mktemp("served"), seed=3), precision="float32")


@pytest.fixture(autouse=True)
def ids(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Clients' ids, which draw marks, are the same in every run of a test."""
    rng = random.Random(request.node.nodeid)
    monkeypatch.setattr(registry_module.secrets, "token_hex", lambda n: rng.randbytes(n).hex())


@pytest.fixture
def keys() -> Keys:
    return Keys(SECRET)


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL of this test run's own."""
    with postgres.running() as found:
        yield found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty registry's address, of each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return request.getfixturevalue("cluster").database()


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    made = Registry(url)
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def make(tmp_path: Path, served: ServedModel, keys: Keys) -> Iterator[Made]:
    """`make(marks={...})`: a guard of the tiny model, on a registry of the test's own."""
    guards: list[Guard] = []

    def made(
        *,
        name: str = "registry",
        about: Any = None,
        curve: Any = None,
        reads: Any = None,
        **config: Any,
    ) -> Guard:
        guards.append(
            Guard(
                parse(GuardConfig, config), keys, Registry(f"sqlite:///{tmp_path / name}.db"),
                about or served.about, curve=curve, reads=reads,
            )
        )  # fmt: skip
        return guards[-1]

    yield made
    for guard in guards:
        guard.close()
