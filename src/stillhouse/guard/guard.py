"""The guard around a model: who may ask, what is logged, which answers are marked, what is shown.

It wraps any `predict`: `admit` before it, `finish` after it. `Guard.answer` is both around a model
of ours; the service and the middleware do the same from many clients at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from stillhouse.core.errors import DataError, RunError, UsageError
from stillhouse.core.terms import Config, Positive
from stillhouse.core.types import Example
from stillhouse.extract.answers import View
from stillhouse.extract.prices import Tariff
from stillhouse.guard.exposure import Curve
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import About, Truth
from stillhouse.guard.purses import LimitsConfig, Purses
from stillhouse.guard.registry import ClientRow, Registry
from stillhouse.guard.suspicion import Odds
from stillhouse.guard.watermark import (
    Draw,
    MarksConfig,
    canonical,
    draw,
    folded,
    permuted,
    wrong_choice,
    wrong_span,
)
from stillhouse.guard.writer import Row, Writer

DECIDED_S = 10.0  # how long an answer waits for its mark to be written
REMEMBERED = 200_000  # questions that a worker knows it has met
FRESH_S = 1.0  # how old what a worker knows of clients may be

OnFlag = Literal["log", "throttle", "label", "random"]


class CheckConfig(Odds):
    """What happens to a client that is flagged. log: nothing; throttle: it gets `slow_per_s`
    questions a second; label: labels only; random: answers that have nothing to do with the
    questions, though the same question has the same one."""

    on_flag: OnFlag = "log"
    slow_per_s: Annotated[float, Field(gt=0)] = 0.1


class KeepConfig(Config):
    """texts: whether the log has the questions themselves; evidence has, in any case. days: how
    long the log is kept (None: always)."""

    texts: bool = False
    days: Annotated[float, Field(gt=0)] | None = None


class SizesConfig(Config):
    """questions: of one request; characters: of one question, both texts together."""

    questions: Positive = 256
    characters: Positive = 50_000


class GuardConfig(Config):
    """How a model is guarded. shows: what answers have, as an audit's views: probabilities,
    probabilities:3, top:2, label, value, text (left out: all there is)."""

    shows: str | None = None
    marks: MarksConfig = MarksConfig()
    limits: LimitsConfig = LimitsConfig()
    check: CheckConfig = CheckConfig()
    keep: KeepConfig = KeepConfig()
    sizes: SizesConfig = SizesConfig()
    tariff: Tariff = Tariff()

    @field_validator("shows")
    @classmethod
    def _view(cls, name: str | None) -> str | None:
        return None if name is None else View.read(name).name

    def view(self, task: str) -> View:
        """What of a task's answers is shown. Raises UsageError for what it has not."""
        usual = {"regression": "value", "span": "text"}.get(task, "probabilities")
        found = View.read(self.shows or usual)
        fits = {"regression": ("value",), "span": ("text",)}.get(task, ("probabilities", "label"))
        if found.shows not in fits:
            raise UsageError(f"a {task} has no {found.shows} to show: one of {', '.join(fits)}")
        return found


@dataclass
class Plan:
    """What becomes of one question: its answer, and where that may be a marked one, `wrong` and
    the decision to wait for."""

    answer: Row
    wrong: Row | None = None
    decision: Future[Row] | None = None


@dataclass
class Counters:
    """What a worker did, for its metrics."""

    questions: int = 0
    marks: int = 0
    odd: int = 0
    denied: dict[int, int] = field(default_factory=dict)


class Guard:
    """One worker's guard of one model. Raises UsageError for a config that doesn't fit the model.

    `curve`: an audit's, for how much of it a client has asked for.
    """

    def __init__(
        self, config: GuardConfig, keys: Keys, registry: Registry, about: About,
        *, curve: Curve | None = None,
    ) -> None:  # fmt: skip
        self.config, self.keys, self.registry, self.about = config, keys, registry, about
        self.curve, self.counters = curve, Counters()
        self._view = config.view(about.task)
        self._spare = _spared(config.marks.spare)
        self._marks = about.task != "regression"
        self._purses = Purses(registry, config.limits, config.tariff)
        self._writer = Writer(registry, config.check, tick=self._tick)
        self._met: OrderedDict[bytes, None] = OrderedDict()
        self._known: dict[str, tuple[float, ClientRow]] = {}
        self._by_key: dict[str, tuple[float, ClientRow | None]] = {}
        self._lock = threading.Lock()
        registry.upgrade()
        registry.commit_to(keys)
        registry.serves(
            about.fingerprint, about.name, about.task, about.choices, self._view.name,
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
        now = time.monotonic()
        held = self._by_key.get(key)
        if held is None or now - held[0] > FRESH_S:
            if len(self._by_key) > 10_000:  # of wrong keys there are many
                self._by_key.clear()
            held = self._by_key[key] = now, self.registry.identify(key)
        return held[1]

    def knows(self, key: str) -> bool:
        """Whether `who` answers from memory."""
        held = self._by_key.get(key)
        return held is not None and time.monotonic() - held[0] <= FRESH_S

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
            whole = each.text + (each.pair or "")
            if "\x00" in whole or any(0xD800 <= ord(c) <= 0xDFFF for c in whole):
                raise DataError(f"question {number} holds what is no text (NUL, or half a pair)")

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
        slow = self.config.check.slow_per_s if self._throttled(self.client(client)) else None
        self._purses.take(client, len(examples), self.cost(examples), per_s=slow)

    def _throttled(self, row: ClientRow) -> bool:
        return row.flagged is not None and self.config.check.on_flag == "throttle"

    # what is answered

    def answer(self, client: str, examples: Sequence[Example], predict: Any) -> list[Row]:
        """Answers around `predict`, which takes examples and gives a Truth each. Raises Denied,
        DataError, RunError."""
        self.check(examples)
        self.admit(client, examples)
        try:
            return self.settle(self.finish(client, examples, predict(examples)))
        except BaseException:
            self.refund(client, examples)
            raise

    def refund(self, client: str, examples: Sequence[Example]) -> None:
        """Takes the charge for questions back that were not answered."""
        self._purses.refund(client, len(examples), self.cost(examples))

    def finish(
        self, client: str, examples: Sequence[Example], truths: Sequence[Truth]
    ) -> list[Plan]:
        """What becomes of each question: logged, and answered or waiting for a decision. Raises
        RunError where the log can't take more."""
        row = self._known[client][1]  # as it was when the questions were let in
        now = time.time()
        lines: list[Row] = []
        controls: list[Row] = []
        asked = odd = 0
        plans: list[Plan] = []
        for example, truth in zip(examples, truths, strict=True):
            question = canonical(example.text, example.pair)
            name = self.keys.query(client, question)
            lines.append(self._line(client, name, example, truth, now))
            if self._is_new(name):
                asked += 1
                odd += truth.odd is not None and truth.odd > 0
            plans.append(self._plan(row, example, truth, question, name, controls, now))
        seen = (client, asked, odd) if asked else None
        self._writer.log(lines, controls, seen)
        self.counters.questions += len(examples)
        self.counters.odd += odd
        return plans

    def settle(self, plans: Sequence[Plan]) -> list[Row]:
        """The answers, once what must be written before they leave is. Raises RunError."""
        until = time.monotonic() + DECIDED_S
        found: list[Row] = []
        for plan in plans:
            if plan.decision is None:
                found.append(plan.answer)
                continue
            try:
                decided = plan.decision.result(max(0.0, until - time.monotonic()))
            except Late:
                raise RunError("the registry can't be reached: try again later") from None
            found.append(self.decided(plan, decided))
        return found

    def decided(self, plan: Plan, decision: Row) -> Row:
        """A question's answer by the decision that holds."""
        if decision["kind"] != "mark":
            return plan.answer
        assert plan.wrong is not None
        self.counters.marks += 1
        served: Row = decision["served"]  # to the last digit as it was before
        return served if served.keys() == plan.answer.keys() else plan.wrong

    def _plan(
        self, row: ClientRow, example: Example, truth: Truth, question: bytes, name: bytes,
        controls: list[Row], now: float,
    ) -> Plan:  # fmt: skip
        """The answer to one question, and whether it waits for a decision. `controls` gets the
        question where it is kept as one."""
        flagged = row.flagged is not None
        on_flag = self.config.check.on_flag
        if flagged and on_flag == "random":  # nothing of the model is in it: nothing to mark
            return Plan(self._random(row.id, example, truth, question))
        view = self._view
        if flagged and on_flag == "label" and self.about.task == "classification":
            view = View("label")
        plain = shown(truth, view, self.about.choices)
        settings = self.config.marks
        whose = row.id if settings.scope == "client" else ""
        drawn = draw(self.keys.marking, whose, question)
        most = max(settings.rate, settings.most)
        if not self._marks or drawn.chance >= most * (1 + settings.controls):
            return Plan(plain)
        marked = self._marked(example, truth, question, drawn)
        if marked is None:
            return Plan(plain)
        rate = settings.at(max(row.charged, self._purses.charged(row.id)))
        band = drawn.band(rate, settings.controls)
        if band == "plain" and drawn.chance >= most:
            return Plan(plain)
        target, wrong = marked
        kept = {
            "time": now, "client": row.id, "query": name,
            "kind": {"plain": "passed"}.get(band, band), "text": example.text,
            "pair": example.pair, "truth": plain, "served": plain, "target": target,
            "key": self.keys.id, "model": self.about.fingerprint,
        }  # fmt: skip
        served = shown(wrong, view, self.about.choices)
        if band == "mark":
            kept["served"] = served
        elif band == "plain":
            kept |= {"text": None, "pair": None, "truth": None, "served": None, "target": None}
        if drawn.chance >= most:  # it would be a mark at no time: nothing to decide
            controls.append(kept)
            return Plan(plain)
        return Plan(plain, served, self._writer.decide(kept))

    def _marked(
        self, example: Example, truth: Truth, question: bytes, drawn: Draw
    ) -> tuple[str, Truth] | None:
        """The wrong answer that the key gives a question, by name and whole; None for a question
        that is never marked."""
        if self._spare and question in self._spare:
            return None
        if truth.text is not None:
            word = wrong_span(drawn.pick, example.pair or "", truth.text)
            return None if word is None else (word, Truth(text=word))
        shares_K = truth.probabilities_K
        if shares_K is None or len(shares_K) < 2:
            return None
        above = self.config.marks.spare_above
        if above is not None and shares_K.max() > above:
            return None
        target = wrong_choice(drawn.pick, int(shares_K.argmax()), len(shares_K))
        return self.about.choices[target], Truth(probabilities_K=permuted(shares_K, target))

    def _random(self, client: str, example: Example, truth: Truth, question: bytes) -> Row:
        """An answer that only the key and the question made: the model has no part in it."""
        drawn = draw(self.keys.of("random answers"), client, question)
        rng = np.random.default_rng(drawn.pick)
        if truth.text is not None:
            word = wrong_span(drawn.pick, example.pair or "", "")
            return {"text": word or ""}
        if truth.value is not None:
            return {"value": round(float(rng.uniform(-1, 1)), 3)}
        shares_K = rng.dirichlet(np.full(len(self.about.choices), 0.5))
        return shown(Truth(probabilities_K=shares_K), self._view, self.about.choices)

    def _line(self, client: str, name: bytes, example: Example, truth: Truth, now: float) -> Row:
        """What the log says of a question."""
        keep = self.config.keep.texts
        return {
            "time": now, "client": client, "query": name, "model": self.about.fingerprint,
            "units": self.config.tariff.units(example.text, example.pair),
            "odd": None if truth.odd is None else truth.odd > 0,
            "text": example.text if keep else None, "pair": example.pair if keep else None,
        }  # fmt: skip

    def _is_new(self, name: bytes) -> bool:
        """Whether this worker meets a question for the first time (as far as it remembers)."""
        with self._lock:
            if name in self._met:
                self._met.move_to_end(name)
                return False
            self._met[name] = None
            if len(self._met) > REMEMBERED:
                self._met.popitem(last=False)
            return True

    def _tick(self) -> None:
        self._purses.give_back()


def shown(truth: Truth, view: View, names: Sequence[str]) -> Row:
    """An answer as clients see it."""
    digits = view.digits
    if truth.text is not None:
        return {"text": truth.text}
    if truth.value is not None:
        return {"value": truth.value if digits is None else round(truth.value, digits)}
    assert truth.probabilities_K is not None
    shares_K = truth.probabilities_K
    found: Row = {"label": names[int(shares_K.argmax())]}
    if view.shows == "label":
        return found
    order = np.argsort(-shares_K, kind="stable")[: view.top]
    found["probabilities"] = {
        names[i]: float(shares_K[i]) if digits is None else round(float(shares_K[i]), digits)
        for i in sorted(order.tolist())
    }
    return found


def _spared(path: str | None) -> frozenset[bytes]:
    """Questions that are never marked: a line each, a pair's two texts with a tab between. Raises
    UsageError."""
    if path is None:
        return frozenset()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read marks.spare {path}: {error}") from None
    found: set[bytes] = set()
    for line in filter(folded, lines):
        text, tab, pair = line.partition("\t")
        found.add(canonical(text, pair if tab else None))
    return frozenset(found)


def exposed(curve: Mapping[str, Any] | None, asked: int) -> tuple[float, float] | None:
    """Of a curve as the registry keeps it: the share of the model's score that a copy from so many
    questions has, and the share of the curve that is used."""
    if curve is None:
        return None
    held = Curve(tuple(curve["queries"]), tuple(curve["shares"]))
    return held.share(asked), held.used(asked)
