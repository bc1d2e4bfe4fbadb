"""A process that serves and goes on afterwards."""

from __future__ import annotations

import subprocess
import sys

GOES_ON = """
import asyncio, os, signal, time
from stillhouse.guard import stopping

class Scheduler:
    def drain(self): pass
    def abandon(self): pass

async def serve():
    signal.signal(signal.SIGTERM, lambda *_: None)  # the server's own
    with stopping.stopping(Scheduler()):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)

stopping.LEAVE_S = 0.3
asyncio.run(serve())
if {ended}:
    stopping.stay()
time.sleep(0.8)
print("here")
"""


def run(*, ended: bool) -> subprocess.CompletedProcess[str]:
    code = GOES_ON.format(ended=ended)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_who_serves_and_goes_on_is_not_ended_later() -> None:
    found = run(ended=True)
    assert (found.returncode, found.stdout) == (0, "here\n")


def test_a_service_that_does_not_end_is_left() -> None:
    found = run(ended=False)
    assert found.returncode == 1
    assert "stopped before all was written" in found.stderr
    assert found.stdout == ""
