"""A PostgreSQL server for tests, on loopback, in a folder that goes when they end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest


def programs() -> Path | None:
    """Where PostgreSQL's own programs are."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


@dataclass
class Cluster:
    folder: Path
    port: int
    bin: Path

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def database(self) -> str:
        """A fresh database's address."""
        name = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        command = ("-D", str(self.folder / "data"), "-o", options, "-w", "-t", "300",
                   "-l", str(self.folder / "log"), "start")  # fmt: skip
        for attempt in range(5):  # after a hard stop the socket may be taken a little longer
            try:
                self._run("pg_ctl", *command)
                return
            except subprocess.CalledProcessError:
                if attempt == 4:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(2)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        """As the user postgres where this is root, whom the server refuses."""
        command = [str(self.bin / program), *arguments]
        if os.geteuid() == 0:
            command = [
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                *command,
            ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       stdin=subprocess.DEVNULL)  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A server, while the block runs. Skips where there is none on this machine."""
    place = programs()
    if place is None:
        pytest.skip("no PostgreSQL server here (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="sh-pg-", dir="/tmp"))
    cluster = Cluster(folder, free_port(), place)
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        cluster._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres", "-N")
        cluster.start()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(cluster.url("postgres")).close()
                break
            time.sleep(0.1)
        yield cluster
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
