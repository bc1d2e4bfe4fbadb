"""Processes that tests start in order to kill them."""

from __future__ import annotations

import os
import subprocess
import sys


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs `script`, once it says "ready": it has got as far as its work."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    """Its exit code, when it is over."""
    process.communicate(timeout=300)
    return process.returncode
