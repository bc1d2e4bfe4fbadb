"""Where the service is to be found, and who else gets there."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import tiny
from stillhouse.core.errors import UsageError
from stillhouse.core.settings import parse
from stillhouse.guard.connections import TimedConnection
from stillhouse.guard.settings import ServeConfig
from stillhouse.guard.workers import run_service


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("address") / "model", seed=3)


class Started:
    """A service that was started and stopped at once: what was said, and the port it had."""

    def __init__(self, model: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.notes: list[str] = []
        self.ports: list[int] = []
        config = parse(
            ServeConfig, {"model": str(model), "guarded": False, "threads": 1, "port": 0, **changes}
        )
        monkeypatch.setattr(uvicorn.Server, "run", self._run)
        run_service(config, ready=self._ready, told=self.notes.append)

    def _ready(self, config: ServeConfig) -> None:
        self.ports.append(config.port)

    def _run(self, **options: Any) -> None:
        (bound,) = options["sockets"]
        self.ports.append(bound.getsockname()[1])
        self.nodelay = bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_free_port_is_told_as_it_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Started(model, monkeypatch)
    told, bound = found.ports
    assert told == bound > 0
    assert found.nodelay
    assert not [note for note in found.notes if "TLS" in note]


@pytest.mark.parametrize(
    ("changes", "warned"),
    [({"host": "127.0.0.1"}, False), ({"host": "localhost"}, False), ({"host": "::1"}, False),
     ({"host": "0.0.0.0"}, True), ({"host": "::"}, True),
     ({"host": "0.0.0.0", "behind_tls": True}, False)],
)  # fmt: skip
def test_who_serves_others_without_tls_is_warned(
    changes: dict[str, Any], warned: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ":" in changes["host"] and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        found = Started(model, monkeypatch, **changes)
    except UsageError:
        if ":" in changes["host"]:
            pytest.skip("no IPv6 here")
        raise
    notes = [note for note in found.notes if "unencrypted" in note]
    assert len(notes) == int(warned)
    assert all("--behind-tls" in note for note in notes)


def test_a_port_that_is_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="can't be served at"):
            Started(model, monkeypatch, port=port)


def test_the_server_has_an_end_to_every_wait(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[uvicorn.Config] = []
    init = uvicorn.Server.__init__

    def kept(self: uvicorn.Server, config: uvicorn.Config) -> None:
        made.append(config)
        init(self, config)

    monkeypatch.setattr(uvicorn.Server, "__init__", kept)
    Started(model, monkeypatch)
    assert made[0].http is TimedConnection
    assert (made[0].timeout_keep_alive, made[0].h11_max_incomplete_event_size) == (10, 16_384)
