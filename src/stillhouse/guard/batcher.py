"""Requests of many clients in one pass of the model: what comes while it runs is the next pass."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from stillhouse.core.errors import RunError
from stillhouse.core.types import Example
from stillhouse.guard.model import Truth

Predict = Callable[[Sequence[Example]], list[Truth]]
Request = tuple[Sequence[Example], "asyncio.Future[list[Truth]]"]


class Batcher:
    """`rows`: questions of one pass, at most (a request that has more is a pass of its own);
    `most`: questions that may wait."""

    def __init__(self, predict: Predict, *, rows: int = 64, most: int = 4096) -> None:
        self._predict, self._rows, self._most = predict, rows, most
        self._waiting: deque[Request] = deque()
        self._count, self._busy = 0, False
        self._some = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.create_task(self._run())

    async def ask(self, examples: Sequence[Example]) -> list[Truth]:
        """Raises RunError where too many wait already."""
        if self._count + len(examples) > self._most and self._waiting:
            raise RunError("the service is overloaded: try again later")
        future: asyncio.Future[list[Truth]] = asyncio.get_running_loop().create_future()
        self._waiting.append((examples, future))
        self._count += len(examples)
        self._some.set()
        return await future

    async def close(self) -> None:
        """Answers what waits, and ends."""
        while self._waiting or self._busy:
            await asyncio.sleep(0.01)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._pool.shutdown()

    def _next(self) -> list[Request]:
        """The oldest requests, as many as one pass takes."""
        found = [self._waiting.popleft()]
        size = len(found[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= self._rows:
            found.append(self._waiting.popleft())
            size += len(found[-1][0])
        self._count -= size
        return found

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                batch, self._busy = self._next(), True
                whole = [example for examples, _ in batch for example in examples]
                try:
                    truths = await loop.run_in_executor(self._pool, self._predict, whole)
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    self._busy = False
                    continue
                at = 0
                for examples, future in batch:
                    if not future.done():  # a client may have left
                        future.set_result(truths[at : at + len(examples)])
                    at += len(examples)
                self._busy = False
