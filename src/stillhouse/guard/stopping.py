"""A service that is told to stop ends within `DRAIN_S`, whatever it is at.

For `ANSWER_S` the model goes on with what it has; the rest is answered with 503. The server cancels
what still runs after `CANCEL_S`, and what hangs even then (a database that says nothing) is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stillhouse.guard.scheduler import Scheduler

DRAIN_S = 20.0
ANSWER_S, CANCEL_S, LEAVE_S = 10.0, 14.0, 19.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_timers: list[threading.Timer] = []  # of this process


@contextmanager
def stopping(scheduler: Scheduler) -> Iterator[None]:
    """Inside the block, a signal to stop is told to the scheduler before the server has it. To be
    entered in the event loop, when the server has its own handlers in place."""
    if threading.current_thread() is not threading.main_thread():  # no signal gets here
        yield
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {each: signal.getsignal(each) for each in SIGNALS}
    told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            loop.call_soon_threadsafe(_drain, loop, scheduler)
            _leave_later()
        if callable(before[number]):
            before[number](number, frame)

    for each in SIGNALS:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in SIGNALS:
            if signal.getsignal(each) is stop:
                signal.signal(each, before[each])


def _drain(loop: asyncio.AbstractEventLoop, scheduler: Scheduler) -> None:
    scheduler.drain()
    loop.call_later(ANSWER_S, scheduler.abandon)


def _leave_later() -> None:
    timer = threading.Timer(LEAVE_S, _leave)
    timer.daemon = True
    timer.start()
    _timers.append(timer)


def stay() -> None:
    """The service has ended: the process may go on, with what it does besides."""
    while _timers:
        _timers.pop().cancel()


def _leave() -> None:
    print("stopped before all was written: the registry does not answer", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
