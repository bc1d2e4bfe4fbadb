"""The guard around a model: who may ask, what is logged, which answers are marked, what is shown.

It wraps any `predict`: `admit` before it, `finish` after it. `Guard.answer` is both around a model
of ours; the service and the middleware do the same from many clients at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from stillhouse.core.errors import DataError, ModelError, RunError
from stillhouse.core.types import Example
from stillhouse.guard.exposure import Curve
from stillhouse.guard.heads import Daily
from stillhouse.guard.keys import Keys
from stillhouse.guard.marking import Asked, Marking, Plan
from stillhouse.guard.model import About, Truth
from stillhouse.guard.purses import Purses
from stillhouse.guard.reading import Reading, Reads, as_written
from stillhouse.guard.registry import API_KEY, ClientRow, Registry
from stillhouse.guard.settings import GuardConfig
from stillhouse.guard.texts import ACCENTS, is_text
from stillhouse.guard.writer import Answered, Row, Writer

DECIDED_S = 10.0  # how long an answer waits for its mark to be written
FRESH_S = 1.0  # how old what a worker knows of clients may be
RETAIN_S = 3600.0  # how often old lines of the log are deleted
STEADY_S = 600.0  # how far the time of day may be set between two of these, to be believed

Predict = Callable[[Sequence[Example]], Sequence[Truth]]


@dataclass(frozen=True)
class Finished:
    """A request's answers, and what must be written before they leave."""

    plans: list[Plan]
    answered: Answered


class Guard:
    """One worker's guard of one model. Raises UsageError for a config that doesn't fit the model.

    `curve`: an audit's, for how much of it a client has asked for. `reads`: what the model reads of
    questions, which marks are drawn from (ServedModel.reads, TokenizerReads; left out: what is
    written, so that forms which only the model can't tell apart have decisions of their own).
    """

    def __init__(
        self, config: GuardConfig, keys: Keys, registry: Registry, about: About,
        *, curve: Curve | None = None, reads: Reads | None = None,
    ) -> None:  # fmt: skip
        self.reads = reads or (lambda examples: [as_written(each) for each in examples])
        self.config, self.keys, self.registry, self.about = config, keys, registry, about
        self.curve = curve
        self.questions = 0  # that this worker answered
        self._purses = Purses(registry, config.limits, config.tariff)
        self._seal = Daily(registry, keys)
        self._writer = Writer(registry, config.check, tick=self._tick)
        self._marking = Marking(config, keys, about, self.reads)
        self._known: dict[str, tuple[float, ClientRow]] = {}
        self._by_key: dict[str, tuple[float, ClientRow | None]] = {}
        self._pinged, self._retained = 0.0, -math.inf
        self._set = time.time() - time.monotonic()  # changes only where a clock is set
        registry.upgrade()
        registry.commit_to(keys)
        registry.serves(
            about.fingerprint, about.name, about.task, about.choices, config.view(about.task).name,
            None if curve is None else dict(curve.as_json()),
        )  # fmt: skip
        self._writer.start()

    def close(self) -> None:
        """Writes what waits, and gives back what clients were charged ahead."""
        self._writer.close()
        self._purses.give_back(idle_only=False)
        self.registry.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flush(self) -> None:
        """Waits until all that was answered is in the registry. Raises RunError."""
        self._writer.flush()

    @property
    def trouble(self) -> str | None:
        """What keeps the log from being written, if anything does."""
        return self._writer.trouble

    # who asks

    def who(self, key: str) -> ClientRow | None:
        """Whose API key it is. What was found is believed for a second."""
        if not API_KEY.fullmatch(key):
            return None
        now = time.monotonic()
        held = self._by_key.get(key)
        if held is None or now - held[0] > FRESH_S:
            if len(self._by_key) > 10_000:  # of wrong keys there are many
                self._by_key.clear()
            held = self._by_key[key] = now, self.registry.identify(key)
        return held[1]

    def knows(self, key: str) -> bool:
        """Whether `who` answers without the registry."""
        held = self._by_key.get(key)
        if held is None:
            return not API_KEY.fullmatch(key)
        return time.monotonic() - held[0] <= FRESH_S

    def client(self, found: str) -> ClientRow:
        """A client as it was at most a second ago."""
        now = time.monotonic()
        held = self._known.get(found)
        if held is None or now - held[0] > FRESH_S:
            held = self._known[found] = now, self.registry.client(found)
        return held[1]

    # what is asked

    def check(self, examples: Sequence[Example]) -> None:
        """Raises DataError for too many or too long questions, and text that no database keeps."""
        sizes = self.config.sizes
        if not examples:
            raise DataError("no question: give text, or texts")
        if len(examples) > sizes.questions:
            raise DataError(f"{len(examples):,} questions at once, {sizes.questions:,} are allowed")
        for number, each in enumerate(examples):
            length = len(each.text) + len(each.pair or "")
            if length > sizes.characters:
                raise DataError(
                    f"question {number} has {length:,} characters, {sizes.characters:,} are allowed"
                )
            if not is_text(each.text + (each.pair or "")):
                raise DataError(
                    f"question {number} holds what is no text (NUL, half a pair, or more than "
                    f"{ACCENTS} accents on a letter)"
                )

    def cost(self, examples: Sequence[Example]) -> int:
        """The units of the price list."""
        return sum(self.config.tariff.units(each.text, each.pair) for each in examples)

    def admit_now(self, client: str, examples: Sequence[Example]) -> bool:
        """Charges a client from what this worker holds for it and knows of it, without asking the
        registry; whether that was enough."""
        held = self._known.get(client)
        if held is None or time.monotonic() - held[0] > FRESH_S or self._throttled(held[1]):
            return False
        return self._purses.held(client, len(examples), self.cost(examples))

    def admit(self, client: str, examples: Sequence[Example]) -> None:
        """Charges a client for questions. Raises Denied."""
        per_s = self._slower(client)
        self._purses.take(client, len(examples), self.cost(examples), per_s=per_s)

    def admit_tokens_now(self, client: str, tokens: int) -> bool:
        """Charges a client for what the model reads, without asking the registry; whether what is
        held here was enough."""
        return self._purses.held(client, 0, 0, tokens)

    def admit_tokens(self, client: str, tokens: int) -> None:
        """Charges a client for so many tokens that the model reads. Raises Denied."""
        self._purses.take(client, 0, 0, tokens, per_s=self._slower(client))

    def _slower(self, client: str) -> float | None:
        """The rate of one that is flagged."""
        return self.config.check.slow_per_s if self._throttled(self.client(client)) else None

    def _throttled(self, row: ClientRow) -> bool:
        return row.flagged is not None and self.config.check.on_flag == "throttle"

    # what is answered

    def answer(
        self, client: str, examples: Sequence[Example], predict: Predict,
        *, reads: Reads | None = None,
    ) -> list[Row]:  # fmt: skip
        """Answers around `predict`, which takes examples and gives a Truth each. `reads`: what the
        model reads of them (left out: the guard's own). Raises Denied, DataError, ModelError,
        RunError."""
        self.check(examples)
        self.admit(client, examples)
        read = 0
        try:
            readings = (reads or self.reads)(examples)
            count = sum(each.tokens for each in readings)
            self.admit_tokens(client, count)
            read = count
            return self.settle(self.finish(client, examples, predict(examples), readings))
        except BaseException:
            self.refund(client, examples, tokens=read)
            raise

    def refund(self, client: str, examples: Sequence[Example], *, tokens: int = 0) -> None:
        """Takes the charge for questions and tokens back that were not answered."""
        self._purses.refund(client, len(examples), self.cost(examples), tokens)

    def finish(
        self, client: str, examples: Sequence[Example], truths: Sequence[Truth],
        readings: Sequence[Reading] | None = None,
    ) -> Finished:  # fmt: skip
        """What becomes of each question, on its way to the registry. readings: what the model reads
        of them, where its answers don't say. Raises ModelError for answers that are no numbers,
        RunError where the log can't take more."""
        row = self._known[client][1]  # as it was when the questions were let in
        now = time.time()
        lines: list[Row] = []
        plans: list[Plan] = []
        readings = readings or [truth.read or self.reads([e])[0]
                                for e, truth in zip(examples, truths, strict=True)]  # fmt: skip
        for example, truth, reading in zip(examples, truths, readings, strict=True):
            _check_finite(truth)
            asked = Asked.by(client, example, reading, self.keys)
            lines.append(self._line(client, asked, truth, now))
            plans.append(self._marking.plan(row, asked, truth, now))
        decisions = [plan.decision for plan in plans if plan.decision is not None]
        answered = Answered(client, self.keys.id, self.about.fingerprint, lines, decisions)
        self._writer.write(answered)
        self.questions += len(examples)
        return Finished(plans, answered)

    def settle(self, finished: Finished) -> list[Row]:
        """The answers, once the registry has what it must before they leave. Raises RunError."""
        with suppress(Late):
            finished.answered.written.result(DECIDED_S)
        time.sleep(self._early_s(finished))
        return self._settled(finished)

    async def settle_beside(self, finished: Finished) -> list[Row]:
        """As `settle`, in an event loop."""
        await asyncio.wait([asyncio.wrap_future(finished.answered.written)], timeout=DECIDED_S)
        await asyncio.sleep(self._early_s(finished))
        return self._settled(finished)

    def _early_s(self, finished: Finished) -> float:
        """How much sooner it was written than most are."""
        due = finished.answered.began + self._writer.steady.seconds
        return max(0.0, due - time.monotonic())

    def _settled(self, finished: Finished) -> list[Row]:
        if not finished.answered.written.done():
            finished.answered.given_up = True
            raise RunError("the registry can't be reached: try again later")
        kinds = finished.answered.written.result()
        return [plan.settled(kinds.get(plan.name)) for plan in finished.plans]

    def _line(self, client: str, asked: Asked, truth: Truth, now: float) -> Row:
        """What the log says of a question."""
        keep, text, pair = self.config.keep.texts, asked.example.text, asked.example.pair
        return {
            "time": now, "client": client, "query": asked.name, "model": self.about.fingerprint,
            "units": self.config.tariff.units(text, pair),
            "odd": None if truth.odd is None else truth.odd > 0,
            "text": text if keep else None, "pair": pair if keep else None,
        }  # fmt: skip

    def _tick(self) -> None:
        """Between batches of the log: what clients don't use goes back, and whether the registry
        is there is seen even where nothing is written; now and then, the log's old lines go, and
        what is new is sealed under a log head."""
        self._purses.give_back()
        self._seal()
        now, days = time.monotonic(), self.config.keep.days
        if days is not None and now - self._retained > RETAIN_S:
            before, self._set = self._set, time.time() - now
            self._retained = now
            if abs(self._set - before) < STEADY_S:  # else lines would go that are not old
                self.registry.retain(days)
        if now - self._pinged > FRESH_S:
            self.registry.ping()
            self._pinged = now


def _check_finite(truth: Truth) -> None:
    """Raises ModelError for an answer that is no number, as another's service may give."""
    shares_K = truth.probabilities_K
    whole = shares_K is None or bool(np.isfinite(shares_K).all())
    if not whole or (truth.value is not None and not math.isfinite(truth.value)):
        raise ModelError("the model's answer is not finite")
