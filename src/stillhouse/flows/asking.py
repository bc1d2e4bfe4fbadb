"""What a run's teacher answers, and what is read inside it: asked once, and timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import generator
from stillhouse.core.types import SignalSource
from stillhouse.data.encoding import tokenizer_fingerprint
from stillhouse.flows.setup import Setup
from stillhouse.models.load import fingerprint
from stillhouse.signals.cache import AnswerCache, CachedTeacher
from stillhouse.signals.kept import CachedStates, keep_states
from stillhouse.signals.states import StatesCache
from stillhouse.signals.teacher import TOLERANCE, LiveTeacher, check, label
from stillhouse.tasks.base import Dataset
from stillhouse.training.objective import Objective


@dataclass
class Asking:
    """The run's teacher, as its stages ask it. `seconds`: what that took; `rows` and `cached`: how
    many rows needed an answer, and how many of them had one before."""

    setup: Setup
    progress: Progress
    seconds: float = 0.0
    rows: int = 0
    cached: int = 0
    _asked: dict[str, tuple[CachedTeacher, Dataset]] = field(default_factory=dict)

    @property
    def asked(self) -> list[tuple[CachedTeacher, Dataset]]:
        """The answers there are, with the rows they belong to."""
        return list(self._asked.values())

    def answers(self, data: Dataset, of: str) -> CachedTeacher:
        """The teacher's answers to the rows that `of` stands for, from its cache, asked now where
        it lacks them.

        A sample is asked again live and compared, so a cache of another teacher is noticed.
        """
        if of in self._asked:
            return self._asked[of][0]
        setup, config = self.setup, self.setup.config.label
        identity = {**_identity(setup), "choices": setup.task.choices}
        started = time.perf_counter()
        cache = AnswerCache(setup.store, identity)
        precision = config.precision
        live = LiveTeacher(setup.teacher, data, fingerprint=cache.fingerprint, precision=precision)
        self.rows += len(data)
        self.cached += int((cache.positions(data.keys_N2) >= 0).sum())
        if len(cache.pending(data.keys_N2)):
            with self.progress.stage("asking the teacher", len(data), "rows") as advance:
                label(live, cache, config, progress=advance)
        else:
            self.progress.note(f"the teacher has answered all {len(data):,} rows before")
        self.seconds += time.perf_counter() - started
        source = CachedTeacher(cache, data.keys_N2)
        sample = generator(0, "cache check").permutation(len(data))[: config.check_rows]
        exact = LiveTeacher(
            setup.teacher, data, fingerprint="live", precision="float32", fast=False
        )
        allowed = TOLERANCE[precision]
        worst = check(exact, source.signal, rows=np.sort(sample), tolerance=allowed)
        self.progress.note(
            f"cached answers agree with the live teacher within {worst:.4f} on {len(sample)} rows"
        )
        self._asked[of] = (source, data)
        return source

    def states(self, objective: Objective, data: Dataset) -> SignalSource:
        """The teacher's inner states: read live, or kept on disk."""
        setup, config = self.setup, self.setup.config.label
        live = LiveTeacher(
            setup.teacher,
            data,
            fingerprint="live",
            precision=config.precision,
            reads=objective.teacher_taps,
            scored=False,
        )
        if config.states == "live":
            return live
        taps = sorted(objective.teacher_taps)
        if any(tap.what != "hidden" for tap in taps):
            raise UsageError(
                "label.states keeps hidden states only, and the objective reads attention: "
                "leave it at live"
            )
        cache = StatesCache(
            setup.store,
            _identity(setup),
            layers=tuple(tap.layer for tap in taps),
            width=setup.teacher.config.hidden_size,
            pooled=objective.first_token_only,
            dtype=config.states,
        )
        missing = cache.missing(data.keys_N2)
        needed = cache.bytes_needed(data.lengths[missing])
        if len(missing):
            self.progress.note(
                f"the teacher's states of {len(missing):,} rows take {needed / 1e6:,.1f} MB in "
                f"{config.states}, under {setup.store}"
            )
        cache.require_room(needed)
        started = time.perf_counter()
        with self.progress.stage("reading the teacher's states", len(data), "rows") as advance:
            keep_states(live, cache, config, progress=advance)
        self.seconds += time.perf_counter() - started
        return CachedStates(cache, data.keys_N2)


def _identity(setup: Setup) -> dict[str, object]:
    """What the teacher's outputs depend on."""
    return {
        "teacher": fingerprint(setup.teacher),
        "tokenizer": tokenizer_fingerprint(setup.teacher_tokenizer),
        "max_length": setup.teacher_length,
        "precision": setup.config.label.precision,
    }
