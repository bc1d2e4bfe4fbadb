"""The audit of a guarded model: the same curve over HTTP as in process, for each policy."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
import yaml
from guarded import known_keys

import stillhouse as sh
import tiny
from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.guard.client import GuardedModel
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import read_keys
from stillhouse.guard.learning import learn_check
from stillhouse.guard.membership import Head
from stillhouse.guard.model import ServedModel
from stillhouse.guard.registry import Registry
from stillhouse.guard.serve import create_app
from stillhouse.guard.settings import GuardConfig, LearnConfig, ServeConfig

POLICIES: dict[str, dict[str, Any]] = {
    "probabilities": {},
    "rounded": {"shows": "probabilities:1"},
    "label only": {"shows": "label"},
    "marked often": {"marks": {"rate": 0.3, "early": 0}},
    "flagged: labels": {"check": {"on_flag": "label"}},
    "flagged: random": {"check": {"on_flag": "random"}},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guarded")
    tiny.save(path / "model", seed=3)
    tiny.save(path / "public", seed=4)
    tiny.reviews(path / "reviews.csv", count=400)
    rng = np.random.default_rng(0)
    words = [*tiny.GOOD, *tiny.BAD, *tiny.PLAIN[:20]]
    lines = [" ".join(rng.choice(words, n)) + " ." for n in rng.integers(5, 20, 900)]
    (path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    known_keys(path / "owner.key")
    learn = {
        "model": str(path / "model"),
        "data": {"path": str(path / "reviews.csv")},
        "corpus": str(path / "text.txt"),
        "cache": str(path / "cache"),
        "lr": 0.01,
        "epochs": 3,
    }
    learn_check(parse(LearnConfig, learn), path / "check")
    return path


def audit(victim: Any, folder: Path, name: str, views: list[str]) -> AuditRecord:
    run = sh.audit(
        victim, str(folder / "reviews.csv"), out=folder / name, seeds=1, progress=Silent(),
        queries={"budgets": [0.25, 1.0], "of": 160, "kinds": ["wiki"],
                 "corpus": str(folder / "text.txt")},
        thieves=[{"model": str(folder / "public"),
                  "training": {"steps": 6, "batch_size": 16, "precision": "float32"}}],
        evaluation={"seeds": [0], "resamples": 20}, views=views,
        cache=str(folder / f"cache-{name}"),
    )  # fmt: skip
    return run.record


def curve(record: AuditRecord) -> list[tuple[str, int, float, float]]:
    return [(c.view, c.queries, c.score, c.agreement) for c in record.copies]


@contextmanager
def over_http(folder: Path, url: str, guard: dict[str, Any]) -> Iterator[str]:
    values = {"model": str(folder / "model"), "registry": url, "key": str(folder / "owner.key"),
              "guard": guard, "membership": str(folder / "check"), "threads": 1,
              "precision": "float32"}  # fmt: skip
    app = create_app(parse(ServeConfig, values))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/predict"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_curve(policy: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of the same size, for the model rounds otherwise; one client asks in both."""
    name = policy.replace(" ", "-").replace(":", "")
    url = f"sqlite:///{folder / f'{name}.db'}"
    views = ["label"] if "label" in policy else ["probabilities", "label"]
    registry = Registry(url)
    registry.upgrade()
    row, key = registry.create_client("thief")
    if policy.startswith("flagged"):
        registry.flag("thief", "by hand")
    model = ServedModel(folder / "model", head=Head.load(folder / "check"), precision="float32")
    config = parse(GuardConfig, POLICIES[policy])
    with Guard(config, read_keys(folder / "owner.key"), registry, model.about) as guard:
        inside = audit(GuardedModel(guard, model, row.name), folder, f"{name}-inside", views)
    monkeypatch.setenv("THIEF", key)
    described = {
        "headers": {"Authorization": "Bearer $THIEF"}, "batch": 64,
        "body": {"texts": "{texts}"}, "choices": model.choices,
        "read": {"answers": "answers", "label": "label", "probabilities": "probabilities"},
    }  # fmt: skip
    if POLICIES[policy].get("shows") == "label":
        del described["read"]["probabilities"]
    with over_http(folder, url, POLICIES[policy]) as address:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(described | {"url": address}))
        outside = audit(str(folder / f"{name}.yaml"), folder, f"{name}-outside", views)
    assert curve(inside) == curve(outside)
    assert inside.victim.score == outside.victim.score
