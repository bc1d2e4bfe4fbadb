"""Processes that tests start, most of them in order to kill them.

A new interpreter spends seconds on its imports. `fork` and `run` copy a process that has done them
(one such process for each worker of a test run); `start` is an interpreter of its own, in which
sets have an order of their own too. A kill test takes `start` for the run it compares with and for
the one that finishes, so that an answer which depends on such an order is noticed.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import IO, Protocol

WAIT_S = 300
COMMAND = """
import runpy
print("ready", flush=True)
runpy.run_module("stillhouse", run_name="__main__", alter_sys=True)
"""  # `stillhouse`, with the script's arguments
IMPORTED = ["torch", "transformers.models.bert.modeling_bert", "stillhouse.runs",
            "stillhouse.tickets.runs", "stillhouse.cli.main"]  # fmt: skip
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(IMPORTED)


class Process(Protocol):
    """One that a test started."""

    def end(self) -> int:
        """Its exit code, when it is over; minus the signal where one killed it."""
        ...

    def is_over(self) -> bool: ...

    def kill(self) -> int:
        """The same, of SIGKILL wherever it is (or its own code where it was over already)."""
        ...


@dataclass(frozen=True)
class Done:
    """What a process left that is over."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class _Interpreter:
    process: subprocess.Popen[str]

    def end(self) -> int:
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> int:
        self.process.kill()
        return self.end()


@dataclass(frozen=True)
class _Fork:
    process: BaseProcess
    stdout: IO[str]
    stderr: IO[str]

    def end(self) -> int:
        with self.stdout, self.stderr:
            self.process.join(WAIT_S)
            code = self.process.exitcode
            assert code is not None, f"it still runs after {WAIT_S} s"
            return code

    def is_over(self) -> bool:
        return self.process.exitcode is not None

    def kill(self) -> int:
        self.process.kill()
        return self.end()


def start(script: str, *arguments: str) -> Process:
    """A new interpreter that runs `script`, once it says "ready": it has got as far as its work."""
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return _Interpreter(process)


def fork(script: str, *arguments: str) -> Process:
    """The same in a fork."""
    process = _fork(script, arguments, stderr=False)
    assert process.stdout.readline() == "ready\n"
    return process


def run(script: str, *arguments: str) -> Done:
    """What a fork that ran `script` left, when it is over."""
    process = _fork(script, arguments, stderr=True)
    with ThreadPoolExecutor(2) as both:
        out, err = both.map(lambda file: file.read(), (process.stdout, process.stderr))
    return Done(process.end(), out, err)


def _fork(script: str, arguments: Sequence[str], *, stderr: bool) -> _Fork:
    (out, says), (err, complains) = (_server.Pipe(duplex=False) for _ in range(2))
    process = _server.Process(
        target=_script, args=(script, arguments, says, complains if stderr else None)
    )
    process.start()
    says.close()
    complains.close()
    files = (os.fdopen(os.dup(each.fileno()), encoding="utf-8") for each in (out, err))
    return _Fork(process, *files)


def _script(
    script: str, arguments: Sequence[str], says: Connection, complains: Connection | None
) -> None:
    """`python -c script *arguments`, in the fork."""
    os.dup2(says.fileno(), 1)
    if complains:
        os.dup2(complains.fileno(), 2)
    sys.argv = ["-c", *arguments]
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
