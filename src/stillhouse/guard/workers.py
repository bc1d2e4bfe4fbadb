"""Starts the service: one process, or several that share the registry."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from uvicorn.supervisors import Multiprocess

from stillhouse.core.errors import UsageError
from stillhouse.core.machine import cores
from stillhouse.core.precision import Auto
from stillhouse.core.rundir import write_yaml
from stillhouse.core.settings import parse, read_yaml
from stillhouse.guard.connections import SETTINGS, TimedConnection
from stillhouse.guard.registry import Registry
from stillhouse.guard.serve import create_app
from stillhouse.guard.settings import ServeConfig
from stillhouse.guard.stopping import CANCEL_S, stay

CONFIG = "STILLHOUSE_SERVE"  # the file with the workers' settings; no key is in it
SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Workers(Multiprocess):
    def keep_subprocess_alive(self) -> None:
        """Starts workers anew that ended. One that ends while it is asked whether it lives is known
        to at once, not when the question times out: nobody else holds its end of the pipe."""
        for process in self.processes:
            process.child_conn.close()
        super().keep_subprocess_alive()


def app() -> object:
    """A worker's application, by the settings that its parent wrote down."""
    return create_app(parse(ServeConfig, read_yaml(Path(os.environ[CONFIG]))))


def run_service(
    config: ServeConfig,
    *,
    ready: Callable[[ServeConfig], None] = lambda config: None,
    told: Callable[[str], None] = lambda note: None,
) -> None:
    """Serves until it is told to stop (SIGINT, SIGTERM); requests under way are answered, those
    that take too long with 503, and all is over within `stopping.DRAIN_S`. `ready` is told when all
    that can be checked before is; `told` what a user should know. Raises UsageError, ModelError,
    RunError."""
    if config.workers > 1 and config.guarded and config.registry.startswith("sqlite"):
        raise UsageError(
            f"{config.workers} workers need PostgreSQL: --registry postgresql://..., or --workers 1"
        )
    with _bound(config) as bound:  # what is wrong is told before a worker starts
        _serve(config.model_copy(update={"port": bound.getsockname()[1]}), bound, ready, told)


def _bound(config: ServeConfig) -> socket.socket:
    """The service's address, held: nobody is let in before the server listens. Raises
    UsageError."""
    found = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    try:
        if os.name == "posix":  # elsewhere it would let a second service have the same port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What connects has it from here; asyncio sets it only on sockets that it made itself, and
        # without it an answer waits 40 ms for the client's delayed ACK.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.bind((config.host, config.port))
    except OSError as error:
        found.close()
        raise UsageError(
            f"{config.host}:{config.port} can't be served at ({error.strerror}): give --host or "
            "--port"
        ) from None
    return found


def _is_local(bound: socket.socket) -> bool:
    """Whether only this machine gets to an address."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def _serve(
    config: ServeConfig,
    bound: socket.socket,
    ready: Callable[[ServeConfig], None],
    told: Callable[[str], None],
) -> None:
    import uvicorn

    if not config.behind_tls and not _is_local(bound):
        told(
            f"warning: {config.host} is open to other machines, and keys and texts go there "
            "unencrypted: put a proxy with TLS in front and say --behind-tls, or serve at 127.0.0.1"
        )
    if config.guarded:
        registry = Registry(config.registry)
        registry.upgrade()
        registry.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one question at a time: threads would wait
    threads = config.threads or max(1, cores() // config.workers)
    auto = Auto.of()  # once: all workers are to answer alike
    for note in auto.notes(config):
        told(note)
    config = auto.settle(config).model_copy(update={"threads": threads})
    settings = {
        "host": config.host,
        "port": config.port,
        "timeout_graceful_shutdown": int(CANCEL_S),
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "http": TimedConnection,
        "ws": "none",
        **SETTINGS,
    }
    if config.workers == 1:
        made = create_app(config)
        ready(config)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                server = uvicorn.Server(uvicorn.Config(made, **settings))  # pyright: ignore
                server.run(sockets=[bound])
        finally:
            stay()
        return
    ready(config)
    with tempfile.TemporaryDirectory(prefix="stillhouse-", ignore_cleanup_errors=True) as held:
        folder = Path(held)
        write_yaml(folder / "serve.yaml", config.model_dump(mode="json"))
        (folder / "meters").mkdir()
        os.environ[CONFIG] = str(folder / "serve.yaml")
        os.environ[SHARED] = str(folder / "meters")
        try:
            several = uvicorn.Config(
                "stillhouse.guard.workers:app", factory=True, workers=config.workers,
                timeout_worker_healthcheck=60, **settings,  # pyright: ignore
            )  # fmt: skip
            bound.set_inheritable(True)
            Workers(several, sockets=[bound]).run()
        finally:
            os.environ.pop(CONFIG, None)
