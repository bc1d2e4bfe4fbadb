"""Workers that are killed, a database that goes away: no marked answer without its record, no
question charged twice beyond the documented bound."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from guarded import known_keys
from postgres import Cluster
from processes import service

import tiny
from stillhouse.core.types import Example
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import ServedModel
from stillhouse.guard.purses import LEASE
from stillhouse.guard.registry import Registry
from stillhouse.guard.stopping import DRAIN_S
from stillhouse.guard.tables import queries
from stillhouse.guard.watermark import draw

pytestmark = [pytest.mark.slow, pytest.mark.alone]
MANY = ("--set", "guard.marks.rate=0.2", "--set", "guard.marks.early=0")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "model", seed=3)


@pytest.fixture
def owner(tmp_path: Path) -> Keys:
    return known_keys(tmp_path / "owner.key")


class Asking:
    """Clients that ask on, whatever happens, and remember what they were told."""

    def __init__(self, url: str, keys: list[str]) -> None:
        self.told: list[dict[str, dict[str, str]]] = [{} for _ in keys]
        self.paid = [0] * len(keys)
        self.statuses: set[int] = set()
        self._url, self._keys, self._stop = url, keys, threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(len(keys))
        ]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def more(self, answers: int, *, seconds: float = 120.0) -> None:
        """Waits until each client was given so many further answers."""
        wanted, until = [paid + answers for paid in self.paid], time.monotonic() + seconds
        while any(paid < enough for paid, enough in zip(self.paid, wanted, strict=True)):
            assert time.monotonic() < until, (self.paid, wanted, self.statuses)
            time.sleep(0.01)

    def _ask(self, number: int) -> None:
        rng, made = random.Random(number), 0
        headers = {"Authorization": f"Bearer {self._keys[number]}"}
        with httpx.Client(timeout=5) as client:
            while not self._stop.is_set():
                texts = [f"film {made + i} of {number}" for i in range(rng.randint(1, 4))]
                try:
                    found = client.post(
                        f"{self._url}/v1/predict", json={"texts": texts}, headers=headers
                    )
                except httpx.HTTPError:
                    time.sleep(0.02)
                    continue
                self.statuses.add(found.status_code)
                if found.status_code != 200:
                    time.sleep(0.05)
                    continue
                self.paid[number] += len(texts)
                for text, answer in zip(texts, found.json()["answers"], strict=True):
                    before = self.told[number].setdefault(text, answer["label"])
                    assert before == answer["label"], "the same question, another answer"
                made += rng.randint(0, len(texts))  # some are asked again


def marked_without_record(
    told: dict[str, str], client: str, owner: Keys, model: ServedModel, registry: Registry
) -> list[str]:
    """Questions whose answer was marked, though nothing of that is in the registry."""
    kept = {e.read for e in registry.evidence(client=client) if e.kind == "mark"}
    texts = list(told)
    truths = model.answers([Example(text) for text in texts])
    found = []
    for text, truth in zip(texts, truths, strict=True):
        assert truth.probabilities_K is not None
        assert truth.read is not None
        true = model.choices[int(truth.probabilities_K.argmax())]
        if told[text] != true:
            assert draw(owner.marking, client, truth.read.content).chance < 0.2
            if truth.read.content not in kept:
                found.append(text)
    return found


@pytest.mark.database
def test_killed_workers_and_a_restarted_database(
    model: Path, owner: Keys, cluster: Cluster, tmp_path: Path
) -> None:
    url = cluster.database()
    registry = Registry(url)
    registry.upgrade()
    made = [registry.create_client(f"client {n}") for n in range(3)]
    kills = 0
    with (
        service(model, url, tmp_path / "owner.key", tmp_path, "--workers", "2", *MANY) as running,
        Asking(running.url, [key for _, key in made]) as asking,
    ):
        for turn in range(4):
            asking.more(10)
            if turn == 2:
                cluster.stop()
                time.sleep(1.0)
                cluster.start()
            else:
                if workers := running.workers():
                    os.kill(workers[turn % len(workers)], signal.SIGKILL)
                    kills += 1
            running.wait()
        asking.more(30)
    assert running.process.returncode in (0, -signal.SIGTERM)
    assert 500 not in asking.statuses
    assert 200 in asking.statuses
    reference = ServedModel(model)
    for (row, _), told, paid in zip(made, asking.told, asking.paid, strict=True):
        assert len(told) > 20
        assert marked_without_record(told, row.id, owner, reference, registry) == []
        charged = registry.client(row.id).charged
        # what was answered, at most once each; a worker that is killed takes its lease along, and
        # with it up to 4 questions that were charged and not answered
        assert paid <= charged <= paid + (kills + 3) * (LEASE + 4)
    assert sum(r["client"] == made[0][0].id for r in registry.rows(queries)) > 20
    registry.close()


def test_a_clean_stop_writes_everything(model: Path, owner: Keys, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    registry = Registry(url)
    registry.upgrade()
    row, key = registry.create_client("ann")
    with (
        service(model, url, tmp_path / "owner.key", tmp_path, *MANY) as running,
        Asking(running.url, [key]) as asking,
    ):
        asking.more(21)
        assert running.stop() in (0, -signal.SIGTERM)
    assert asking.paid[0] > 20
    lines = [r for r in registry.rows(queries) if r["client"] == row.id]
    charged = registry.client(row.id).charged
    assert asking.paid[0] <= len(lines) <= asking.paid[0] + 4  # the last answer may not arrive
    assert charged == len(lines)
    registry.close()


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("--workers", "2"), marks=pytest.mark.database)]
)
def test_a_stop_takes_no_longer_than_promised_whatever_runs(
    workers: tuple[str, ...], owner: Keys, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Minutes of work are under way: what there is no time for is told, and not charged."""
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    if workers:
        url = request.getfixturevalue("cluster").database()
    registry = Registry(url)
    registry.upgrade()
    row, key = registry.create_client("ann")
    body = {"texts": ["the film ?"] * 80, "pairs": ["a film " * 6_900] * 80}
    long = ("--set", "guard.sizes.tokens=100000000", "--set", "queue.time_s=600",
            "--set", "rows=1", "--set", "max_length=24")  # fmt: skip
    folder = tiny.save_spans(tmp_path / "spans")
    found: list[httpx.Response] = []
    with service(folder, url, tmp_path / "owner.key", tmp_path, *workers, *long) as running:

        def ask() -> None:
            headers = {"Authorization": f"Bearer {key}"}
            address = f"{running.url}/v1/predict"
            found.append(httpx.post(address, json=body, headers=headers, timeout=120))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(3)
        assert not found
        began = time.monotonic()
        assert running.stop() in (0, -signal.SIGTERM)
        assert time.monotonic() - began < DRAIN_S
        asking.join()
    assert found[0].status_code == 503
    assert "closing" in found[0].json()["error"]
    assert (registry.client(row.id).charged, registry.client(row.id).token_charge) == (0, 0)
    registry.close()


def test_no_secret_is_in_the_services_log(model: Path, owner: Keys, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    registry = Registry(url)
    registry.upgrade()
    _, key = registry.create_client("ann")
    with service(model, url, tmp_path / "owner.key", tmp_path, *MANY) as running:
        headers = {"Authorization": f"Bearer {key}"}
        for body in ({"text": "a film that nobody knows"}, {"nonsense": 1}, None):
            httpx.post(f"{running.url}/v1/predict", json=body, headers=headers)
        httpx.get(f"{running.url}/owner", headers=headers)
        running.stop()
        log = running.log.read_text()
    hidden = [
        (tmp_path / "owner.key").read_text().strip(),
        owner.marking.hex(),
        key,
        "nobody knows",
    ]
    assert [each for each in hidden if each in log] == []
    registry.close()


def test_answers_of_several_workers_wait_for_no_acknowledgement(
    model: Path, owner: Keys, tmp_path: Path
) -> None:
    """Nagle's algorithm and a delayed ACK would make every answer take 40 ms."""
    options = ("--workers", "2", "--set", "guarded=false")
    with (
        service(model, "sqlite://", tmp_path / "owner.key", tmp_path, *options) as running,
        httpx.Client() as client,
    ):
        times = []
        for _ in range(60):
            started = time.perf_counter()
            client.get(f"{running.url}/health")
            times.append(time.perf_counter() - started)
    assert sorted(times[20:])[10] < 0.03  # a new connection is acknowledged at once


def test_a_worker_killed_while_it_is_asked_for_a_sign_of_life_is_replaced(
    model: Path, owner: Keys, tmp_path: Path
) -> None:
    options = ("--workers", "2", "--set", "guarded=false")
    with service(model, "sqlite://", tmp_path / "owner.key", tmp_path, *options) as running:
        before = running.workers()
        os.kill(before[0], signal.SIGSTOP)  # it answers no more
        time.sleep(1.5)
        os.kill(before[0], signal.SIGKILL)
        until = time.monotonic() + 20
        while time.monotonic() < until and not set(running.workers()) - set(before):
            time.sleep(0.1)
        assert set(running.workers()) - set(before)


def test_several_workers_on_sqlite_are_refused(model: Path, owner: Keys, tmp_path: Path) -> None:
    from stillhouse.core.errors import UsageError
    from stillhouse.guard.settings import ServeConfig
    from stillhouse.guard.workers import run_service

    config = ServeConfig(model=str(model), registry=f"sqlite:///{tmp_path / 'r.db'}",
                         key=str(tmp_path / "owner.key"), workers=2)  # fmt: skip
    with pytest.raises(UsageError, match="PostgreSQL"):
        run_service(config)
