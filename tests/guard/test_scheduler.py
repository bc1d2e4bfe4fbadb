"""Whose question is next: nobody's work holds another's up for longer than a piece."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from stillhouse.core.errors import DataError, RunError
from stillhouse.core.types import Example
from stillhouse.guard.model import InputRow, Part, Tokenized, Truth
from stillhouse.guard.pace import BRIEF_SHARE, OWN_SHARE, PASS_S
from stillhouse.guard.purses import Denied
from stillhouse.guard.reading import guess
from stillhouse.guard.scheduler import Scheduler
from stillhouse.guard.settings import QueueConfig
from stillhouse.guard.waiting import Request

BASE_S, TOKEN_S, CHARACTER_S = 0.001, 1e-4, 1e-6


class Costly:
    """A model that takes known time, on a clock that only it moves: a text "3x50" has three rows of
    50 tokens."""

    def __init__(
        self, *, base_s: float = BASE_S, token_s: float = TOKEN_S, read_s: float = 0.0,
        sleeps: bool = False,
    ) -> None:  # fmt: skip
        self.read_s = read_s  # and CHARACTER_S
        self.base_s, self.token_s = base_s, token_s
        self.clock, self._sleeps = 0.0, sleeps
        self.passes: list[list[int]] = []  # the rows' lengths
        self.pieces: list[float] = []
        self.read = 0

    def now(self) -> float:
        return time.perf_counter() if self._sleeps else self.clock

    def reads(self, examples: Sequence[Example]) -> list[Tokenized]:
        self.read += len(examples)
        characters = sum(len(e.text) + len(e.pair or "") for e in examples)
        self._takes(self.read_s + CHARACTER_S * characters)
        if any(each.text == "unreadable" for each in examples):
            raise DataError("unreadable")
        found = []
        for each in examples:
            rows, _, length = each.text.partition("x")
            ids_T = np.full(int(length), int(rows))
            made = tuple(InputRow(ids_T, 0) for _ in range(int(rows)))
            found.append(Tokenized(each.text, sum(map(len, made)), made))
        return found

    def expects(self, example: Example) -> int:
        return guess(example)

    def answer_rows(self, rows: Sequence[InputRow]) -> list[Part]:
        self.passes.append([len(row) for row in rows])
        self._takes(self.base_s + self.token_s * len(rows) * max(map(len, rows)))
        if any(len(row) == 13 for row in rows):
            raise RuntimeError("unlucky")
        return [Part(Truth(value=float(len(row)))) for row in rows]

    def _takes(self, seconds: float) -> None:
        self.pieces.append(seconds)
        self.clock += seconds
        if self._sleeps:
            time.sleep(seconds)


def made(**changes: Any) -> tuple[Scheduler, Costly]:
    model = Costly()
    return Scheduler(model, start=False, now=model.now, **changes), model


def large(**changes: Any) -> tuple[Scheduler, Costly]:
    """A model of which one short row takes longer than a pass is to take."""
    model = Costly(base_s=0.05, token_s=5e-4, **changes)
    return Scheduler(model, start=False, now=model.now), model


def asked(text: str, count: int = 1, characters: int = 0) -> list[Example]:
    return [Example(text, "a" * characters if characters else None) for _ in range(count)]


def until(scheduler: Scheduler, model: Costly, request: Request) -> float:
    """How long it takes until a request is answered."""
    began = model.clock
    while not request.answered.done():
        assert scheduler.step()
    return model.clock - began


def warmed(**changes: Any) -> tuple[Scheduler, Costly]:
    """One that knows how long passes take."""
    scheduler, model = made(**changes)
    for text in ("1x10", "1x500", "1x100", "1x20"):
        until(scheduler, model, scheduler.submit("first", asked(text)))
    model.passes.clear()
    model.pieces.clear()
    return scheduler, model


ONE_S = BASE_S + 500 * TOKEN_S  # of the heaviest row: a piece may be one row
HEAVY = {
    "many long texts": asked("1x500", 256, 10_000),
    "long passages": asked("60x400", 3, 40_000),
    "many texts that take long to read": asked("1x500", 80, 48_000),
    "many short texts": asked("1x12", 256, 10),
}


@pytest.mark.parametrize("kind", HEAVY)
@pytest.mark.parametrize("clients", [1, 8])
def test_a_light_client_waits_for_a_piece_not_for_a_request(kind: str, clients: int) -> None:
    scheduler, model = warmed(queue=QueueConfig(questions=10**5, tokens=10**8))
    for number in range(clients):
        for _ in range(3):
            scheduler.submit(f"heavy {number}", HEAVY[kind])
    for _ in range(20):
        scheduler.step()
    for _ in range(10):
        piece = scheduler.step() and model.pieces[-1]  # under way when it comes
        took = until(scheduler, model, scheduler.submit("light", asked("1x12")))
        # the piece under way, and its own pass: which others may share
        assert piece <= max(ONE_S, 1.1 * PASS_S)
        assert took <= BASE_S + 13 * TOKEN_S * 10


def test_equal_clients_get_equal_time_however_much_they_send() -> None:
    scheduler, model = warmed()
    for _ in range(5):
        scheduler.submit("greedy", asked("1x500", 200))
    scheduler.submit("modest", asked("1x450", 100))  # rows that share no pass
    while model.clock < 3:
        scheduler.step()
    spent = {
        length: sum(
            BASE_S + TOKEN_S * length * len(rows) for rows in model.passes if set(rows) == {length}
        )
        for length in (500, 450)
    }
    assert spent[500] == pytest.approx(spent[450], abs=2 * ONE_S)


def test_who_sends_one_by_one_is_not_ahead_of_who_sends_all() -> None:
    """A client that has nothing for a moment keeps what it has used."""
    scheduler, model = warmed()
    scheduler.submit("all at once", asked("1x500", 250))
    before, used = model.clock, 0
    while model.clock < before + 3:
        until(scheduler, model, scheduler.submit("one by one", asked("1x500")))
        used += 1
    share = used * ONE_S / (model.clock - before)
    assert share == pytest.approx(0.5, abs=0.05)


def test_light_questions_of_several_clients_share_a_pass() -> None:
    scheduler, model = warmed()
    requests = [scheduler.submit(f"client {n}", asked("1x12")) for n in range(8)]
    while scheduler.step():
        pass
    assert all(request.answered.result()[0].value == 12 for request in requests)
    assert model.passes == [[12] * 8]


def test_a_few_rows_of_many_make_no_light_row_wait() -> None:
    scheduler, model = warmed()
    scheduler.submit("many", asked("1x12", 256))
    for _ in range(4):
        scheduler.step()
    scheduler.submit("one", asked("1x12"))
    scheduler.step()
    scheduler.step()
    assert len(model.passes[-1]) <= 4


def test_one_client_alone_has_all_of_the_model() -> None:
    scheduler, model = warmed()
    took = until(scheduler, model, scheduler.submit("alone", asked("1x12", 256)))
    whole = 256 * (12 * TOKEN_S) + 4 * BASE_S  # in passes of 64 rows
    assert took < 1.1 * whole
    assert max(map(len, model.passes)) > 8


@pytest.mark.parametrize("lengths", [(12,), (9, 10, 11, 12, 13, 14, 15, 16)])
def test_a_large_models_rows_share_passes_too(lengths: tuple[int, ...]) -> None:
    """Its passes are found to have a cost of their own even where all before were of one row."""
    scheduler, model = large()
    for length in (8, 10, 12, 12, 16, 12):
        until(scheduler, model, scheduler.submit("a", asked(f"1x{length}")))
    lengths = tuple(length for length in lengths if length != 13)  # unlucky
    request = scheduler.submit("a", [Example(f"1x{lengths[n % len(lengths)]}") for n in range(256)])
    took = until(scheduler, model, request)
    at_once = sum(model.base_s + 64 * model.token_s * max(lengths) for _ in range(4))
    assert took < 1.7 * at_once
    assert max(model.pieces) < 1.3 * model.base_s / OWN_SHARE


@pytest.mark.parametrize("read_s", [0.0, 0.001])
def test_light_questions_of_several_clients_share_a_large_models_passes(read_s: float) -> None:
    scheduler, model = large(read_s=read_s)
    requests = {n: scheduler.submit(f"client {n}", asked("1x12")) for n in range(8)}
    began, answered = model.clock, 0
    while answered < 400:  # each asks again when it has its answer
        scheduler.step()
        for n, request in requests.items():
            if request.answered.done():
                answered += 1
                model.clock += 1e-5  # no two come at the same time
                requests[n] = scheduler.submit(f"client {n}", asked("1x12"))
    alone = model.base_s + 12 * model.token_s
    assert model.clock - began < 0.4 * 400 * alone


def test_a_short_question_is_read_before_a_pass_that_it_can_share() -> None:
    """Though its client had more of the model's time than whose pass it is."""
    scheduler, model = large()
    scheduler.submit("busy", asked("1x500", 20))
    for _ in range(3):
        until(scheduler, model, scheduler.submit("a", asked("1x12")))
    requests = [scheduler.submit(name, asked("1x12")) for name in ("a", "b")]
    until(scheduler, model, requests[1])
    assert model.passes[-1] == [12, 12]
    assert requests[0].answered.done()


def test_many_short_rows_make_brief_passes_where_others_come_between() -> None:
    scheduler, model = large()
    until(scheduler, model, scheduler.submit("heavy", asked("1x12", 256)))
    assert max(model.pieces) > 1.2 * model.base_s / BRIEF_SHARE
    for _ in range(4):
        scheduler.submit("heavy", asked("1x12", 256))
    until(scheduler, model, scheduler.submit("light", asked("1x12")))
    model.pieces.clear()
    for _ in range(40):
        until(scheduler, model, scheduler.submit("light", asked("1x12")))
        for _ in range(4):  # what the other has meanwhile
            scheduler.step()
    assert max(model.pieces) < 1.1 * model.base_s / BRIEF_SHARE


def test_a_large_models_long_rows_run_alone() -> None:
    scheduler, model = large()
    scheduler.submit("heavy", asked("1x500", 100))
    for _ in range(40):
        until(scheduler, model, scheduler.submit("light", asked("1x12")))
    assert {len(rows) for rows in model.passes[20:] if max(rows) == 500} == {1}


def test_passes_are_short_and_of_rows_of_similar_length() -> None:
    scheduler, model = warmed()
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 500, 200).tolist()
    request = scheduler.submit("mixed", [Example(f"1x{n}") for n in lengths])
    until(scheduler, model, request)
    assert [truth.value for truth in request.answered.result()] == lengths
    for rows in model.passes:
        assert max(rows) <= max(1.25 * min(rows), min(rows) + 16)
        assert len(rows) == 1 or BASE_S + TOKEN_S * len(rows) * max(rows) < 1.3 * PASS_S
    padded = sum(len(rows) * max(rows) for rows in model.passes)
    assert padded < 1.15 * sum(lengths)


def test_rows_of_one_pass_are_no_more_than_allowed() -> None:
    scheduler, model = warmed(rows=4)
    until(scheduler, model, scheduler.submit("a", asked("1x2", 10)))
    assert max(map(len, model.passes)) == 4


def test_whoever_leaves_is_worked_for_no_longer() -> None:
    scheduler, model = warmed()
    leaving = scheduler.submit("leaves", asked("60x400", 3, 40_000))
    staying = scheduler.submit("stays", asked("1x300", 20))
    for _ in range(10):
        scheduler.step()
    leaving.answered.cancel()
    passes = len(model.passes)
    until(scheduler, model, staying)
    assert not scheduler.step()
    assert {length for rows in model.passes[passes:] for length in rows} == {300}
    assert scheduler._questions == scheduler._weight == 0


@pytest.mark.parametrize("text", ["unreadable", "1x13"])
def test_an_error_is_its_own_requests(text: str) -> None:
    scheduler, _ = warmed()
    good, bad = scheduler.submit("a", asked("1x50")), scheduler.submit("b", asked(text))
    while scheduler.step():
        pass
    assert good.answered.result()[0].value == 50
    assert bad.answered.exception() is not None
    assert scheduler._questions == scheduler._weight == 0


def test_more_tokens_than_a_request_may_have_are_not_even_read() -> None:
    scheduler, model = made(tokens=1000)
    request = scheduler.submit("a", asked("60x400", 50, 5_000))
    while scheduler.step():
        pass
    with pytest.raises(DataError, match=r"more than 1,000 tokens"):
        request.answered.result()
    assert model.read == 1
    assert model.passes == []


def test_who_has_filled_the_queue_waits() -> None:
    scheduler, _ = made(queue=QueueConfig(questions=100))
    scheduler.submit("greedy", asked("1x10", 60))
    scheduler.submit("greedy", asked("1x10", 40))
    with pytest.raises(Denied, match="100 questions of yours wait") as caught:
        scheduler.submit("greedy", asked("1x10"))
    assert caught.value.status == 429
    assert caught.value.retry_s is not None
    assert caught.value.retry_s >= 1


def test_a_full_queue_keeps_nobody_out_who_has_less_than_an_equal_share() -> None:
    scheduler, _ = made(queue=QueueConfig(questions=100))
    for number in range(2):
        scheduler.submit(f"greedy {number}", asked("1x10", 50))
    for number in range(10):
        scheduler.submit(f"light {number}", asked("1x10"))
    with pytest.raises(Denied, match="overloaded") as caught:
        scheduler.submit("another", asked("1x10", 20))
    assert caught.value.status == 503
    assert caught.value.retry_s is not None


def test_tokens_that_wait_are_limited_too() -> None:
    scheduler, _ = made(queue=QueueConfig(tokens=10_000))
    scheduler.submit("greedy", asked("19x500", 1, 4_000))  # a guess: a quarter of the characters
    scheduler.submit("another", asked("1x10"))
    for _ in range(2):
        scheduler.step()
    with pytest.raises(Denied, match="wait"):
        scheduler.submit("greedy", asked("1x1000", 1, 4_000))
    scheduler.submit("another", asked("1x10"))


def test_tokens_are_told_before_the_model_runs() -> None:
    scheduler, model = made()
    told: list[int] = []

    def charge(tokens: int) -> bool:
        assert model.passes == []
        told.append(tokens)
        return False

    request = scheduler.submit("a", asked("3x50", 2), charge=charge)
    while scheduler.step():
        pass
    assert told == [300]
    assert model.passes == []
    assert request.parked.result() == 300
    scheduler.go(request)
    until(scheduler, model, request)


def in_time(work: Callable[[Scheduler, Costly], Any], **changes: Any) -> Any:
    """Runs `work` on a scheduler with a thread of its own."""

    async def run() -> Any:
        model = Costly(sleeps=True)
        scheduler = Scheduler(model, QueueConfig(**changes), now=model.now)
        try:
            return await work(scheduler, model)
        finally:
            scheduler.close()

    return asyncio.run(run())


def test_a_request_that_takes_too_long_is_told_and_dropped() -> None:
    async def work(scheduler: Scheduler, model: Costly) -> None:
        with pytest.raises(Denied, match=r"within 0\.2 seconds") as caught:
            await scheduler.ask("a", asked("1x400", 100))
        assert caught.value.status == 503
        passes = len(model.passes)
        await asyncio.sleep(0.15)
        assert len(model.passes) <= passes + 1
        assert (await scheduler.ask("b", asked("1x10")))[0].value == 10

    in_time(work, time_s=0.2)


def test_a_charge_that_takes_its_time_holds_nobody_up() -> None:
    async def work(scheduler: Scheduler, model: Costly) -> None:
        told: list[int] = []

        def slowly(tokens: int) -> None:
            time.sleep(0.3)
            told.append(tokens)

        slow = asyncio.ensure_future(
            scheduler.ask("a", asked("1x10"), charge=lambda _: False, charge_later=slowly)
        )
        await asyncio.sleep(0.05)
        assert (await scheduler.ask("b", asked("1x10")))[0].value == 10
        assert not slow.done()
        assert (await slow)[0].value == 10
        assert told == [10]

    in_time(work)


def test_who_may_not_pay_for_tokens_is_not_answered() -> None:
    def denied(tokens: int) -> None:
        raise Denied("no room", status=402)

    async def work(scheduler: Scheduler, model: Costly) -> None:
        with pytest.raises(Denied, match="no room"):
            await scheduler.ask("a", asked("1x10"), charge=lambda _: False, charge_later=denied)
        assert model.passes == []
        await asyncio.sleep(0.01)
        assert scheduler._questions == 0

    in_time(work)


def test_closing_takes_a_piece_whatever_waits() -> None:
    async def work(scheduler: Scheduler, model: Costly) -> float:
        asking = [
            asyncio.ensure_future(scheduler.ask(f"client {n}", asked("1x400", 250)))
            for n in range(4)
        ]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        scheduler.drain()
        with pytest.raises(RunError, match="closing"):
            await scheduler.ask("late", asked("1x10"))
        await asyncio.to_thread(scheduler.close)
        for each in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(each, RunError)
        return time.monotonic() - began

    assert in_time(work) < 1.0


def test_nothing_asked_is_nothing() -> None:
    async def work(scheduler: Scheduler, model: Costly) -> None:
        assert await scheduler.ask("a", []) == []

    in_time(work)
