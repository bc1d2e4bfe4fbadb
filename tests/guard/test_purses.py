"""Budgets and rates: never exceeded, by however many workers, and nothing charged twice."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from stillhouse.core.errors import RunError
from stillhouse.extract.prices import Tariff
from stillhouse.guard.purses import LEASE, TOKEN_LEASE, Denied, Purses
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import LimitsConfig
from stillhouse.guard.tables import clients


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def purses(registry: Registry, clock: Clock | None = None, **limits: Any) -> Purses:
    clock = clock or Clock()
    return Purses(registry, LimitsConfig(**limits), Tariff(free=10), clock=clock, idle_clock=clock)


def spend(purse: Purses, client: str, *, most: int = 10_000, count: int = 1) -> int:
    """How many questions are let in before one is denied."""
    for done in range(most):
        try:
            purse.take(client, count, count)
        except Denied:
            return done
    return most


def test_a_budget_is_spent_to_the_last_question(registry: Registry) -> None:
    row, _ = registry.create_client("ann")
    purse = purses(registry, queries=150)
    assert spend(purse, row.id) == 150
    assert registry.client(row.id).charged == 150


def test_a_clients_own_budget_counts(registry: Registry) -> None:
    row, _ = registry.create_client("ann", queries=7)
    assert spend(purses(registry, queries=150), row.id) == 7


def test_a_batch_is_let_in_whole_or_not_at_all(registry: Registry) -> None:
    row, _ = registry.create_client("ann", queries=10)
    purse = purses(registry)
    with pytest.raises(Denied, match="10 are left") as caught:
        purse.take(row.id, 11, 11)
    assert caught.value.status == 402
    purse.take(row.id, 10, 10)


def test_money_is_kept_to_the_cent(registry: Registry) -> None:
    """10 free, a dollar a thousand: 5 cents are 60 questions."""
    row, _ = registry.create_client("ann")
    purse = purses(registry, money=0.05)
    assert spend(purse, row.id) == 60
    with pytest.raises(Denied, match=r"\$0.05"):
        purse.take(row.id, 1, 1)


def test_units_count_not_questions(registry: Registry) -> None:
    row, _ = registry.create_client("ann")
    purse = purses(registry, money=0.05)
    purse.take(row.id, 1, 50)
    with pytest.raises(Denied):
        purse.take(row.id, 1, 11)
    purse.take(row.id, 1, 10)


def test_a_rate_refills(registry: Registry) -> None:
    clock = Clock()
    row, _ = registry.create_client("ann")
    purse = purses(registry, clock, per_s=2.0, burst_s=5.0)
    assert spend(purse, row.id) == 10
    with pytest.raises(Denied) as caught:
        purse.take(row.id, 1, 1)
    assert caught.value.status == 429
    assert caught.value.retry_s == pytest.approx(0.5)
    clock.now += 3
    assert spend(purse, row.id) == 6
    clock.now += 3600
    assert spend(purse, row.id) == 10


def test_a_throttled_client_is_slower(registry: Registry) -> None:
    clock = Clock()
    row, _ = registry.create_client("ann")
    purse = purses(registry, clock)
    purse.take(row.id, 1, 1, per_s=0.1)
    purse.give_back(idle_only=False)
    with pytest.raises(Denied, match=r"0\.1 questions a second"):
        purse.take(row.id, 1, 1, per_s=0.1)


def test_a_revoked_client_is_denied(registry: Registry) -> None:
    row, _ = registry.create_client("ann")
    registry.revoke("ann")
    with pytest.raises(Denied) as caught:
        purses(registry).take(row.id, 1, 1)
    assert caught.value.status == 401


def test_workers_together_keep_a_budget(registry: Registry) -> None:
    row, _ = registry.create_client("ann", queries=300)
    workers = [purses(registry) for _ in range(4)]
    done = [0] * 4

    def work(number: int) -> None:
        done[number] = spend(workers[number], row.id)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 300
    assert registry.client(row.id).charged == 300


def test_what_a_killed_worker_held_is_the_documented_bound(registry: Registry) -> None:
    row, _ = registry.create_client("ann")
    purse = purses(registry)
    purse.take(row.id, 1, 1)
    assert 1 <= registry.client(row.id).charged <= LEASE
    del purse  # killed: nothing goes back
    assert registry.client(row.id).charged <= LEASE


def test_what_is_not_used_goes_back(registry: Registry) -> None:
    clock = Clock()
    row, _ = registry.create_client("ann")
    purse = purses(registry, clock, per_s=50.0)
    for _ in range(3):
        purse.take(row.id, 1, 2)
    purse.give_back()
    assert registry.client(row.id).charged > 3  # used just now
    clock.now += 10
    purse.give_back()
    found = registry.client(row.id)
    assert (found.charged, found.units) == (3, 6)
    assert not purse.held(row.id, 1, 1)


def test_what_goes_back_may_be_asked_at_the_same_rate(registry: Registry) -> None:
    clock = Clock()
    row, _ = registry.create_client("ann")
    first, second = (purses(registry, clock, per_s=10.0, burst_s=10.0) for _ in range(2))
    first.take(row.id, 1, 1)
    assert registry.client(row.id).charged > 20
    first.give_back(idle_only=False)
    assert spend(second, row.id) == 99


def test_a_refund_is_no_charge(registry: Registry) -> None:
    row, _ = registry.create_client("ann", queries=5)
    purse = purses(registry)
    purse.take(row.id, 5, 5)
    purse.refund(row.id, 5, 5)
    purse.give_back(idle_only=False)
    assert registry.client(row.id).charged == 0


def test_a_refund_of_more_than_a_lease_is_not_held(registry: Registry) -> None:
    row, _ = registry.create_client("ann", queries=1000)
    purse = purses(registry)
    purse.take(row.id, 256, 256)
    purse.refund(row.id, 256, 256)
    purse.give_back()
    assert registry.client(row.id).charged == 0


def test_what_could_not_go_back_is_lost_not_doubled(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = registry.create_client("ann", queries=100)
    purse = purses(registry)
    purse.take(row.id, 1, 1)

    def away() -> None:
        raise RunError("away")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "writing", away)
        with pytest.raises(RunError, match="away"):
            purse.give_back(idle_only=False)
    purse.give_back(idle_only=False)
    assert registry.client(row.id).charged == LEASE
    assert spend(purse, row.id) == 100 - LEASE


def test_a_budget_is_not_called_spent_for_what_is_held_here(registry: Registry) -> None:
    row, _ = registry.create_client("ann", queries=100)
    purse = purses(registry)
    for count in (1, 50, 40):
        purse.take(row.id, count, count)
    with pytest.raises(Denied):
        purse.take(row.id, 10, 10)
    purse.take(row.id, 9, 9)
    with pytest.raises(Denied):
        purse.take(row.id, 1, 1)


def test_no_more_than_a_lease_is_held(registry: Registry) -> None:
    row, _ = registry.create_client("ann")
    purse = purses(registry)
    for _ in range(5):  # short questions, then a long one: units lack, not questions
        purse.take(row.id, 1, 1)
        purse.take(row.id, 1, 500)
    assert registry.client(row.id).charged <= 10 + LEASE


def test_more_at_once_than_a_rate_ever_allows_is_told(registry: Registry) -> None:
    row, _ = registry.create_client("ann", per_s=1.0)
    with pytest.raises(Denied, match="ask 10 at most") as caught:
        purses(registry).take(row.id, 11, 11)
    assert caught.value.status == 413


def test_tokens_of_a_rate_are_shared_by_workers(registry: Registry) -> None:
    row, _ = registry.create_client("ann", per_s=10.0)
    clock = Clock()
    workers = [purses(registry, clock, burst_s=10.0) for _ in range(2)]
    done = 0
    for turn in range(400):
        try:
            workers[turn % 2].take(row.id, 1, 1)
            done += 1
        except Denied:
            pass
    assert done == 100
    with registry.engine.connect() as connection:
        (tokens,) = connection.execute(sa.select(clients.c.tokens)).one()
    assert tokens == pytest.approx(0.0)


# the clock


@pytest.mark.parametrize("worker", ["the same", "another"])
def test_a_clock_that_was_ahead_locks_nobody_out(worker: str, registry: Registry) -> None:
    """Two hours ahead for a while, and then put right: what Retry-After says holds."""
    clock = Clock()
    row, _ = registry.create_client("ann")
    purse = purses(registry, clock, per_s=2.0, burst_s=5.0)
    clock.now += 7200
    spend(purse, row.id)
    purse.give_back(idle_only=False)
    clock.now -= 7200
    if worker == "another":
        purse = purses(registry, clock, per_s=2.0, burst_s=5.0)
    with pytest.raises(Denied) as caught:
        purse.take(row.id, 1, 1)
    assert caught.value.status == 429
    assert caught.value.retry_s is not None
    assert caught.value.retry_s <= 0.5
    clock.now += caught.value.retry_s
    purse.take(row.id, 1, 1)


def test_a_clock_that_is_set_back_gives_no_rate_away(registry: Registry) -> None:
    clock = Clock()
    row, _ = registry.create_client("ann")
    purse = purses(registry, clock, per_s=2.0, burst_s=5.0)
    assert spend(purse, row.id) == 10
    for _ in range(20):
        clock.now -= 100
        with pytest.raises(Denied):
            purse.take(row.id, 1, 1)
    assert registry.client(row.id).charged == 10


def test_leases_go_back_whatever_the_time_of_day(registry: Registry) -> None:
    clock, idle = Clock(), Clock()
    row, _ = registry.create_client("ann")
    purse = Purses(registry, LimitsConfig(), Tariff(), clock=clock, idle_clock=idle)
    purse.take(row.id, 1, 1)
    clock.now -= 7200
    idle.now += 10
    purse.give_back()
    assert registry.client(row.id).charged == 1


def test_workers_share_one_clock(registry: Registry) -> None:
    """By default it is the database's, where it has one."""
    row, _ = registry.create_client("ann")
    purse = Purses(registry, LimitsConfig(per_s=0.001, burst_s=5000), Tariff())
    before = time.time()
    assert spend(purse, row.id) == 5
    with registry.engine.connect() as connection:
        (filled,) = connection.execute(sa.select(clients.c.filled)).one()
    assert before - 5 <= filled <= time.time() + 5


# tokens


def charged_tokens(registry: Registry, client: str) -> int:
    return registry.client(client).token_charge


def test_a_budget_of_tokens_is_spent_to_the_last(registry: Registry) -> None:
    row, _ = registry.create_client("ann")
    purse = purses(registry, tokens=100_000)
    for _ in range(10):
        purse.take(row.id, 0, 0, 9_999)
    with pytest.raises(Denied, match="10 are left, and this has 11") as caught:
        purse.take(row.id, 0, 0, 11)
    assert caught.value.status == 402
    purse.take(row.id, 0, 0, 10)
    assert charged_tokens(registry, row.id) == 100_000
    with pytest.raises(Denied, match="100,000 tokens is spent") as caught:
        purse.take(row.id, 1, 1)  # nothing is even read
    assert caught.value.status == 402


def test_a_clients_own_budget_of_tokens_counts(registry: Registry) -> None:
    row, _ = registry.create_client("ann", tokens=50, tokens_per_s=1.0)
    assert (row.token_budget, row.tokens_per_s) == (50, 1.0)
    purse = purses(registry, tokens=1_000_000, burst_s=1000.0)
    purse.take(row.id, 0, 0, 50)
    with pytest.raises(Denied, match="spent"):
        purse.take(row.id, 0, 0, 1)


def test_a_rate_of_tokens_refills(registry: Registry) -> None:
    clock = Clock()
    row, _ = registry.create_client("ann")
    purse = purses(registry, clock, tokens_per_s=100.0, burst_s=10.0)
    purse.take(row.id, 0, 0, 900)
    with pytest.raises(Denied, match="rate of 100 tokens a second") as caught:
        purse.take(row.id, 0, 0, 300)
    assert caught.value.status == 429
    assert caught.value.retry_s == pytest.approx(2.0)
    clock.now += 2.0
    purse.take(row.id, 0, 0, 300)
    with pytest.raises(Denied, match="ask 1,000 at most") as caught:
        purse.take(row.id, 0, 0, 1001)
    assert caught.value.status == 413


def test_questions_and_tokens_are_charged_apart(registry: Registry) -> None:
    row, _ = registry.create_client("ann", queries=10, tokens=1000)
    purse = purses(registry)
    for _ in range(5):
        purse.take(row.id, 1, 3)
        purse.take(row.id, 0, 0, 100)
    purse.give_back(idle_only=False)
    found = registry.client(row.id)
    assert (found.charged, found.units, found.token_charge) == (5, 15, 500)


def test_tokens_of_light_questions_cost_no_transaction_each(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = registry.create_client("ann")
    purse = purses(registry)
    purse.take(row.id, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "writing", None)
        for _ in range(60):
            assert purse.held(row.id, 1, 1)
            assert purse.held(row.id, 0, 0, 100)


def test_refunded_tokens_are_no_charge(registry: Registry) -> None:
    row, _ = registry.create_client("ann", tokens=100_000)
    purse = purses(registry)
    purse.take(row.id, 1, 1)
    purse.take(row.id, 0, 0, 90_000)
    purse.refund(row.id, 1, 1, 90_000)
    purse.give_back()
    found = registry.client(row.id)
    assert (found.charged, found.units, found.token_charge) == (0, 0, 0)


def test_workers_together_keep_a_budget_of_tokens(registry: Registry) -> None:
    row, _ = registry.create_client("ann", tokens=60_000)
    workers = [purses(registry) for _ in range(4)]
    done = [0] * 4

    def work(number: int) -> None:
        for _ in range(10_000):
            try:
                workers[number].take(row.id, 0, 0, 100)
            except Denied:
                return
            done[number] += 100

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) <= 60_000
    for worker in workers:
        worker.give_back(idle_only=False)
    assert charged_tokens(registry, row.id) == sum(done)
    assert sum(done) + 4 * TOKEN_LEASE >= 60_000
