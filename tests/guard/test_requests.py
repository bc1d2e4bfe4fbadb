"""Requests over a socket: clients that leave, questions that take long, bodies that are heavy."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from guarded import known_keys

import tiny
from stillhouse.core.settings import parse
from stillhouse.guard import purses
from stillhouse.guard.model import ServedModel
from stillhouse.guard.registry import Registry
from stillhouse.guard.requests import AT_ONCE, Beside
from stillhouse.guard.serve import create_app
from stillhouse.guard.settings import ServeConfig

PASS_S = 0.02


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not used goes back at once."""
    monkeypatch.setattr(purses, "IDLE_S", 0.1)


class Slow:
    """The served model, each pass of which takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        own = ServedModel.answer_rows

        def slowly(model: ServedModel, rows: Any) -> Any:
            self.rows += len(rows)
            time.sleep(PASS_S * len(rows))
            return own(model, rows)

        monkeypatch.setattr(ServedModel, "answer_rows", slowly)


class Service:
    def __init__(self, folder: Path, **changes: Any) -> None:
        model = tiny.save(folder / "model", seed=3)
        known_keys(folder / "owner.key")
        url = f"sqlite:///{folder / 'registry.db'}"
        values = {"model": str(model), "registry": url, "threads": 1,
                  "key": str(folder / "owner.key"), **changes}  # fmt: skip
        self.registry = Registry(url)
        self.registry.upgrade()
        app = create_app(parse(ServeConfig, values))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        held = socket.create_server(("127.0.0.1", 0))
        self.port = held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [held]})

    def client(self, name: str, **settings: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.registry.create_client(name, **settings)[1]}"}

    def ask(self, key: dict[str, str], *texts: str, timeout: float = 30.0) -> httpx.Response:
        body = {"texts": list(texts)}
        return httpx.post(f"{self.url}/v1/predict", json=body, headers=key, timeout=timeout)

    def charged(self, name: str) -> tuple[int, int]:
        """Questions and tokens, when all that is held here went back."""
        until = time.monotonic() + 10
        found, same = (-1, -1), 0
        while time.monotonic() < until and same < 4:
            time.sleep(0.2)
            row = self.registry.named(name)
            same = same + 1 if (row.charged, row.token_charge) == found else 0
            found = row.charged, row.token_charge
        return found


@contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[Service]:
    service = Service(folder, **changes)
    service.thread.start()
    while not service.server.started:
        time.sleep(0.01)
    try:
        yield service
    finally:
        service.server.should_exit = True
        service.thread.join(30)
        service.registry.close()


def test_a_client_that_leaves_is_worked_for_no_longer_and_not_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    with serving(tmp_path) as service:
        ann = service.client("ann")
        with pytest.raises(httpx.ReadTimeout):
            service.ask(ann, *(f"film {n}" for n in range(200)), timeout=0.4)
        time.sleep(0.1)
        rows = slow.rows
        assert rows < 100
        time.sleep(0.4)
        assert slow.rows == rows
        assert service.charged("ann") == (0, 0)


def test_a_request_without_an_answer_in_time_is_not_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Slow(monkeypatch)
    with serving(tmp_path, queue={"time_s": 0.3}) as service:
        ann = service.client("ann")
        found = service.ask(ann, *(f"film {n}" for n in range(200)))
        assert found.status_code == 503
        assert "within 0.3 seconds" in found.json()["error"]
        assert int(found.headers["retry-after"]) >= 1
        assert service.charged("ann") == (0, 0)


def test_budgets_and_rates_in_tokens(tmp_path: Path) -> None:
    with serving(tmp_path, guard={"limits": {"burst_s": 10}}) as service:
        few = service.client("few", tokens=40)
        assert service.ask(few, "a good film").status_code == 200
        used = service.ask(few, "we " * 60)
        assert used.status_code == 402
        assert "tokens" in used.json()["error"]
        slow = service.client("slow", tokens_per_s=3.0)
        assert service.ask(slow, *["a good film"] * 4).status_code == 200
        again = service.ask(slow, *["a good film"] * 4)
        assert again.status_code == 429
        assert 1 <= int(again.headers["retry-after"]) <= 10
        assert service.charged("few")[0] == 1  # what was denied for tokens is no question
        assert service.charged("slow")[0] == 4
        usage = httpx.get(f"{service.url}/v1/usage", headers=few).json()
        assert usage["tokens"] == 5  # a good film, and the two around it
        assert usage["questions"] == 1


def test_one_request_has_so_many_tokens_at_most(tmp_path: Path) -> None:
    with serving(tmp_path, guard={"sizes": {"tokens": 20}}) as service:
        ann = service.client("ann")
        found = service.ask(ann, *["a good film"] * 5)
        assert found.status_code == 422
        assert "more than 20 tokens" in found.json()["error"]
        assert service.charged("ann") == (0, 0)


HEAVY = {
    "folds to many characters": ({"texts": ["\ufdfa" * 5000] * 256}, 200),
    "accents": ({"texts": [("a" + "\u0301\u0323" * 15) * 300] * 140}, 200),
    "no end of texts": ({"texts": [""] * 1_000_000}, 422),
    "no texts": ({"texts": [1] * 1_300_000}, 422),
    "other names": ({f"{n}": 1 for n in range(250_000)}, 422),
}


@pytest.mark.parametrize("kind", HEAVY)
def test_heavy_bodies_hold_nobody_up(kind: str, tmp_path: Path) -> None:
    """`/health`, which needs the event loop only, while a full body is read and checked."""
    body, status = HEAVY[kind]
    raw = json.dumps(body, ensure_ascii=False).encode()
    assert len(raw) < 4 << 20
    with serving(tmp_path, guard={"marks": {"rate": 0, "most": 0}}) as service:
        headers = service.client("ann") | {"content-type": "application/json"}
        found: list[int] = []

        def post() -> None:
            url = f"{service.url}/v1/predict"
            found.append(httpx.post(url, content=raw, headers=headers, timeout=60).status_code)

        posting = threading.Thread(target=post)
        slowest = 0.0
        with httpx.Client() as client:
            client.get(f"{service.url}/health")
            posting.start()
            while posting.is_alive():
                began = time.perf_counter()
                client.get(f"{service.url}/health")
                slowest = max(slowest, time.perf_counter() - began)
        assert found == [status]
        assert slowest < 0.7


def test_nobody_without_a_key_has_a_body_read(tmp_path: Path) -> None:
    with serving(tmp_path) as service, socket.create_connection(("127.0.0.1", service.port)) as s:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        s.sendall(head + b"Content-Length: 4000000\r\n\r\n[")
        s.settimeout(10)
        assert b" 401 " in s.recv(1000)


def test_clients_take_turns_with_heavy_work() -> None:
    async def run() -> list[str]:
        beside, done = Beside(), list[str]()
        await asyncio.gather(
            *(
                beside.do(name, AT_ONCE + 1, lambda name=name: done.append(name))
                for name in (*["greedy"] * 6, "modest")
            )
        )
        beside.close()
        return done

    assert "modest" in asyncio.run(run())[:2]


def test_heavy_work_leaves_the_threads_that_ask_the_registry() -> None:
    async def run() -> int:
        beside, ended = Beside(), threading.Event()
        working = [
            asyncio.ensure_future(beside.do(f"client {n}", AT_ONCE + 1, lambda: ended.wait(20)))
            for n in range(40)
        ]
        await asyncio.sleep(0)
        try:
            return await asyncio.wait_for(asyncio.to_thread(lambda: 1), 5)
        finally:
            ended.set()
            await asyncio.gather(*working)
            beside.close()

    assert asyncio.run(run()) == 1
