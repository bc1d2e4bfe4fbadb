"""Counters of a service as Prometheus text, added up over workers. No client is named in them, and
no mark or odd question is counted: whoever looks between two questions would learn which was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    multiprocess,
)

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # where workers keep theirs
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Meters:
    """One worker's."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._held = CollectorRegistry()
        self._questions = Counter("stillhouse_questions", "questions answered", registry=self._held)
        self._refused = Counter(
            "stillhouse_refused", "requests that were refused", ["status"], registry=self._held
        )
        self._seconds = Histogram(
            "stillhouse_request_seconds", "from a whole request to its answer", buckets=BUCKETS,
            registry=self._held,
        )  # fmt: skip
        self._told = 0

    def answered(self, questions: int) -> None:
        """Takes over how many questions the guard has counted so far."""
        self._questions.inc(questions - self._told)
        self._told = questions

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds.observe(time.perf_counter() - started)

    def text(self) -> bytes:
        if os.environ.get(SHARED):
            held = CollectorRegistry()
            multiprocess.MultiProcessCollector(held)  # pyright: ignore[reportUnknownMemberType]
            return generate_latest(held)
        return generate_latest(self._held)
