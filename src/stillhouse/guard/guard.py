"""The guard around a model: who may ask, what is logged, which answers are marked, what is shown.

It wraps any `predict`: `admit` before it, `finish` after it. `Guard.answer` is both around a model
of ours; the service and the middleware do the same from many clients at once.
"""

from __future__ import annotations

import math
import time
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
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
from stillhouse.guard.registry import API_KEY, ClientRow, Registry
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
from stillhouse.guard.writer import PASSED, Row, Writer

DECIDED_S = 10.0  # how long an answer waits for its mark to be written
FRESH_S = 1.0  # how old what a worker knows of clients may be
RETAIN_S = 3600.0  # how often old lines of the log are deleted
ACCENTS = 30  # combining characters in a row, as in Unicode's stream-safe form

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


@dataclass(frozen=True)
class Before:
    """A decision about a question: mark, control or passed (neither, for good), what was served if
    it was kept, in which view, and how the question was written."""

    kind: str
    served: Row | None
    shows: str
    asked: tuple[str | None, str | None]


@dataclass
class Plan:
    """What becomes of one question: its answer, or where it is kept as evidence the decision to
    wait for, and `wrong`, its answer if that is a mark. shows: the view of both; asked: the
    question as it was written."""

    answer: Row
    wrong: Row | None = None
    shows: str = ""
    asked: tuple[str | None, str | None] = (None, None)
    decision: Future[Row] | None = None


@dataclass
class Counters:
    """What a worker did, for its metrics."""

    questions: int = 0
    marks: int = 0
    odd: int = 0


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
        self._spare = _spare_list(config.marks.spare)
        self._marks = about.task != "regression"
        self._purses = Purses(registry, config.limits, config.tariff)
        self._writer = Writer(registry, config.check, tick=self._tick)
        self._before: dict[bytes, Before] = {}
        self._known: dict[str, tuple[float, ClientRow]] = {}
        self._by_key: dict[str, tuple[float, ClientRow | None]] = {}
        self._pinged, self._retained = 0.0, -math.inf
        registry.upgrade()
        registry.commit_to(keys)
        registry.serves(
            about.fingerprint, about.name, about.task, about.choices, self._view.name,
            None if curve is None else dict(curve.as_json()),
        )  # fmt: skip
        self._recall()
        self._writer.start()

    def _recall(self) -> None:
        """Learns what was decided before, whatever the settings are now."""
        kept = self.registry.evidence(model=self.about.fingerprint)
        self._before = {
            each.query: Before(each.kind, each.served, each.shows, (each.text, each.pair))
            for each in kept
            if each.key == self.keys.id
        }

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
            row = self.registry.client(found)
            if held is not None and row.evidence.window != held[1].evidence.window:  # forgotten?
                self._recall()
            held = self._known[found] = now, row
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
            if not _is_text(each.text + (each.pair or "")):
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
        plans: list[Plan] = []
        for example, truth in zip(examples, truths, strict=True):
            _check_finite(truth)
            question = canonical(example.text, example.pair)
            name = self.keys.query(client, question)
            lines.append(self._line(client, name, example, truth, now))
            plans.append(self._plan(row, example, truth, question, name, now))
        self._writer.log(lines)
        self.counters.questions += len(examples)
        self.counters.odd += sum(bool(line["odd"]) for line in lines)
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
        before = Before(
            decision["kind"], decision["served"], decision["shows"],
            (decision["text"], decision["pair"]),
        )  # fmt: skip
        self._before[bytes(decision["query"])] = before
        return self._again(before, plan)

    def _again(self, before: Before, plan: Plan) -> Row:
        """A kept question's answer as it was given first, to the last digit; where more or less is
        shown today, the same answer in today's form. Written otherwise, its own answer, wrong if
        the question is marked: of no question have two forms the same digits."""
        self.counters.marks += before.kind == "mark"
        if before.served is None:
            return plan.answer
        if before.asked == plan.asked:
            if before.shows == plan.shows:
                return before.served
            if before.kind == "mark" and plan.answer.keys() == {"label"}:
                return {"label": before.served["label"]}
        if before.kind != "mark":
            return plan.answer
        return plan.wrong if plan.wrong is not None else plan.answer

    def _plan(
        self, row: ClientRow, example: Example, truth: Truth, question: bytes, name: bytes,
        now: float,
    ) -> Plan:  # fmt: skip
        """The answer to one question, and whether it waits for a decision."""
        flagged, on_flag = row.flagged is not None, self.config.check.on_flag
        if flagged and on_flag == "random":  # nothing of the model is in it: nothing to mark
            return Plan(self._random(row.id, example, truth, question))
        view = self._view
        if flagged and on_flag == "label" and self.about.task == "classification":
            view = View("label")
        plain = shown(truth, view, self.about.choices)
        settings = self.config.marks
        whose = row.id if settings.scope == "client" else ""
        drawn = draw(self.keys.marking, whose, question)
        if name in self._before:
            marked = self._wrong(example, truth, drawn)
            wrong = None if marked is None else shown(marked[1], view, self.about.choices)
            asked = (example.text, example.pair)
            return Plan(self._again(self._before[name], Plan(plain, wrong, view.name, asked)))
        rate = settings.at(row.distinct)
        band = drawn.band(rate, settings.controls)
        possible = max(settings.rate, settings.most if rate else 0.0)
        if not self._marks or (band == "plain" and drawn.chance >= possible):
            return Plan(plain)
        marked = None if self._spared(truth, question) else self._wrong(example, truth, drawn)
        if marked is None:
            return Plan(plain)
        target, wrong_truth = marked
        wrong = shown(wrong_truth, view, self.about.choices)
        kept = {
            "time": now, "client": row.id, "query": name, "kind": band, "text": example.text,
            "pair": example.pair, "truth": plain, "served": wrong if band == "mark" else plain,
            "target": target, "shows": view.name, "rate": rate, "controls": settings.controls,
            "scope": settings.scope, "key": self.keys.id, "model": self.about.fingerprint,
        }  # fmt: skip
        if band == "plain":  # it could have been a mark before: that it is none now is for good
            kept |= PASSED
        asked = (example.text, example.pair)
        return Plan(plain, wrong, view.name, asked, self._writer.decide(kept))

    def _spared(self, truth: Truth, question: bytes) -> bool:
        """Whether a question is never marked."""
        above, shares_K = self.config.marks.spare_above, truth.probabilities_K
        if above is not None and shares_K is not None and float(shares_K.max()) > above:
            return True
        return question in self._spare

    def _wrong(self, example: Example, truth: Truth, drawn: Draw) -> tuple[str, Truth] | None:
        """The wrong answer that the key gives a question, by name and whole; None where it has
        none."""
        if truth.text is not None:
            word = wrong_span(drawn.pick, example.pair or "", truth.text)
            return None if word is None else (word, Truth(text=word))
        shares_K = truth.probabilities_K
        if shares_K is None or len(shares_K) < 2:
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

    def _tick(self) -> None:
        """Between batches of the log: what clients don't use goes back, and whether the registry
        is there is seen even where nothing is written; now and then, the log's old lines go."""
        self._purses.give_back()
        now, days = time.monotonic(), self.config.keep.days
        if days is not None and now - self._retained > RETAIN_S:
            self._retained = now
            self.registry.retain(days)
        if now - self._pinged > FRESH_S:
            self.registry.ping()
            self._pinged = now


def _check_finite(truth: Truth) -> None:
    """Raises DataError for an answer that is no number, as another's service may give."""
    shares_K = truth.probabilities_K
    whole = shares_K is None or bool(np.isfinite(shares_K).all())
    if not whole or (truth.value is not None and not math.isfinite(truth.value)):
        raise DataError("the model's answer is not finite")


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


def _is_text(text: str) -> bool:
    """Whether a database keeps it, no NUL and no half of a surrogate pair, and folding it takes no
    long: Unicode's stream-safe form."""
    try:
        whole = b"\x00" not in text.encode()
    except UnicodeEncodeError:
        return False
    if text.isascii():
        return whole
    run = 0
    for each in text:
        run = run + 1 if unicodedata.combining(each) else 0
        if run > ACCENTS:
            return False
    return whole


def _spare_list(path: str | None) -> frozenset[bytes]:
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
