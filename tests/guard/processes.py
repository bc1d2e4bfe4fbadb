"""The service as processes of its own, on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from postgres import free_port


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    several: bool

    def workers(self) -> list[int]:
        """The processes that serve: the supervisor's children, or where there is one worker the
        process itself."""
        if not self.several:
            return [self.process.pid]
        children = psutil.Process(self.process.pid).children()
        found: list[int] = []
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):  # killed just now
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child.pid)
        return found

    def wait(self, *, seconds: float = 240.0) -> None:
        """Until it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@contextlib.contextmanager
def service(
    model: Path, registry: str, key: Path, folder: Path, *options: str
) -> Iterator[Running]:
    """`stillhouse serve`, while the block runs."""
    port, log = free_port(), folder / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "stillhouse", "serve", str(model), "--registry", registry,
               "--key", str(key), "--port", str(port), *options]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment
        )
    several = "--workers" in options
    running = Running(process, f"http://127.0.0.1:{port}", log, several)
    try:
        running.wait()
        yield running
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                for each in [*children, process]:
                    each.kill()
                process.wait()
