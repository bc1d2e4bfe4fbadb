"""Sealing: what no head has, once, whoever does it; and what deletion leaves of it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from guarded import Made, sure

from stillhouse.core.errors import UsageError
from stillhouse.core.types import Example
from stillhouse.guard import heads as log
from stillhouse.guard.chain import is_chain, is_under, leaf
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Registry
from stillhouse.guard.snapshot import take
from stillhouse.guard.tables import heads, leaves, marks


def kept(registry: Registry, keys: Keys, client: str, number: int, **changes: Any) -> None:
    """A decision, as the writer makes them."""
    row = {
        "time": 1000.0 + number, "client": client, "query": number.to_bytes(16, "big"),
        "kind": "mark", "text": f"film {number}", "pair": None, "read": f"film {number}",
        "truth": {"label": "a"}, "served": {"label": "b"}, "target": "b", "shows": "label",
        "rate": 0.1, "controls": 10,
        "scope": "client", "key": keys.id, "model": "m" * 64, **changes,
    }  # fmt: skip
    with registry.writing() as connection:
        connection.execute(sa.insert(marks).values(row))


@pytest.fixture
def ready(registry: Registry, keys: Keys) -> Registry:
    registry.commit_to(keys)
    registry.serves("m" * 64, "our model", "classification", ["a", "b"], "label", None)
    return registry


def whole(registry: Registry, keys: Keys) -> tuple[int, bool]:
    """How many decisions have a proof, and whether all of these hold."""
    chain = log.sealed(registry)
    found = log.proofs(registry, model="m" * 64, key=keys.id)
    rows = {(r["client"], bytes(r["query"])): r for r in registry.rows(marks)}
    holds = all(
        is_under(leaf(rows[place[:2]], bytes.fromhex(proof.salt)), proof, chain)
        for place, proof in found.items()
    )
    return len(found), holds and is_chain(chain)


def test_what_no_head_has_is_sealed_once(ready: Registry, keys: Keys) -> None:
    client = ready.create_client("ann")[0].id
    for number in range(5):
        kept(ready, keys, client, number)
    first = log.seal(ready, keys)
    assert first is not None
    assert (first.head.number, first.head.decisions, first.head.leaves) == (1, 5, 6)
    assert (first.head.first, first.head.last) == (1000.0, 1004.0)
    assert log.seal(ready, keys) is None
    kept(ready, keys, client, 5, kind="control", served={"label": "a"})
    kept(
        ready,
        keys,
        client,
        6,
        kind="passed",
        text=None,
        read=None,
        truth=None,
        served=None,
        target=None,
    )
    second = log.seal(ready, keys)
    assert second is not None
    assert (second.head.previous, second.head.decisions) == (first.head.hash, 2)
    assert whole(ready, keys) == (6, True)  # what was passed is no evidence
    tally = log.tallies(ready, model="m" * 64, key=keys.id, up_to=2)[client]
    assert (tally.tally.kept, tally.proof.head) == (6, 2)
    assert is_under(
        leaf(tally.tally.model_dump(), bytes.fromhex(tally.proof.salt)), tally.proof,
        log.sealed(ready),
    )  # fmt: skip
    earlier = log.tallies(ready, model="m" * 64, key=keys.id, up_to=1)[client]
    assert (earlier.tally.kept, earlier.proof.head) == (5, 1)


def test_rows_that_are_seen_late_are_not_lost(ready: Registry, keys: Keys) -> None:
    """Another worker's transaction may end later with a smaller number."""
    client = ready.create_client("ann")[0].id
    kept(ready, keys, client, 1, id=100)
    log.seal(ready, keys)
    kept(ready, keys, client, 2, id=50)
    late = log.seal(ready, keys)
    assert late is not None
    assert late.head.decisions == 1
    assert whole(ready, keys) == (2, True)


def test_a_changed_decision_has_no_proof_any_more(ready: Registry, keys: Keys) -> None:
    client = ready.create_client("ann")[0].id
    kept(ready, keys, client, 1)
    kept(ready, keys, client, 2)
    log.seal(ready, keys)
    for changed in ({"target": "a"}, {"served": {"label": "a"}}, {"time": 1.0}, {"rate": 0.2}):
        before = ready.rows(marks)[0]
        with ready.writing() as connection:
            connection.execute(sa.update(marks).where(marks.c.id == before["id"]).values(changed))
        assert whole(ready, keys) == (2, False), changed
        with ready.writing() as connection:
            held = {name: before[name] for name in changed}
            connection.execute(sa.update(marks).where(marks.c.id == before["id"]).values(held))
    assert whole(ready, keys) == (2, True)


def test_forgetting_one_leaves_the_others_proofs(ready: Registry, keys: Keys) -> None:
    ann, bob = (ready.create_client(name)[0].id for name in ("ann", "bob"))
    for number in range(4):
        kept(ready, keys, ann, number)
        kept(ready, keys, bob, number)
    log.seal(ready, keys)
    assert ready.forget("ann") == 4
    assert whole(ready, keys) == (4, True)
    held = [row for row in ready.rows(leaves) if row["client"] != bob]
    assert len(held) == 5  # four decisions, one tally
    for row in held:  # its hash stays, and nothing that tells of what
        assert (row["mark"], row["client"], row["salt"], row["tally"]) == (None,) * 4
    kept(ready, keys, bob, 9)  # SQLite may give a deleted row's number again
    kept(ready, keys, ann, 9)
    again = log.seal(ready, keys)
    assert again is not None
    assert again.head.decisions == 2
    assert whole(ready, keys) == (6, True)
    assert log.tallies(ready, model="m" * 64, key=keys.id, up_to=2)[ann].tally.kept == 1


def test_a_key_has_a_head_before_any_question(ready: Registry, keys: Keys) -> None:
    found = log.seal(ready, keys, every_s=log.DAY_S)
    assert found is not None
    assert (found.head.decisions, found.head.commitment) == (0, keys.commitment)
    assert log.seal(ready, keys, every_s=log.DAY_S) is None
    other = Keys(bytes(32))
    next_one = log.seal(ready, other, every_s=log.DAY_S)
    assert next_one is not None
    assert next_one.head.commitment == other.commitment
    assert is_chain(log.sealed(ready))


def test_once_a_day(ready: Registry, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    client = ready.create_client("ann")[0].id
    log.seal(ready, keys, every_s=log.DAY_S)
    kept(ready, keys, client, 1)
    assert log.seal(ready, keys, every_s=log.DAY_S) is None
    now = time.time()
    for later in (log.DAY_S + 1, -log.DAY_S - 1):  # a clock that was set back is no reason to wait
        monkeypatch.setattr(log.time, "time", lambda later=later: now + later)
        kept(ready, keys, client, 2 + int(later > 0))
        assert log.seal(ready, keys, every_s=log.DAY_S) is not None


def test_many_are_sealed_in_parts(
    ready: Registry, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST", 3)
    client = ready.create_client("ann")[0].id
    for number in range(7):
        kept(ready, keys, client, number)
    daily = log.Daily(ready, keys)
    for _ in range(5):
        daily()
    assert [each.head.decisions for each in log.sealed(ready)] == [3, 3, 1]
    for number in range(7, 12):
        kept(ready, keys, client, number)
    log.seal_all(ready, keys)
    assert [each.head.decisions for each in log.sealed(ready)][3:] == [3, 2]
    assert whole(ready, keys) == (12, True)
    last = log.tallies(ready, model="m" * 64, key=keys.id, up_to=9)[client]
    assert last.tally.kept == 12


def test_workers_who_seal_at_once_make_one_chain(ready: Registry, keys: Keys, url: str) -> None:
    client = ready.create_client("ann")[0].id
    others = [Registry(url) for _ in range(4)]

    def work(registry: Registry, worker: int) -> None:
        for number in range(6):
            kept(registry, keys, client, 100 * worker + number)
            log.seal(registry, keys)

    threads = [threading.Thread(target=work, args=(r, w)) for w, r in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.seal(ready, keys)
    assert sum(each.head.decisions for each in log.sealed(ready)) == 24
    assert whole(ready, keys) == (24, True)
    for each in others:
        each.close()


def test_a_service_seals_as_it_goes(make: Made, keys: Keys) -> None:
    guard: Guard = make(marks={"rate": 0.5, "early": 0})
    client = guard.registry.create_client("ann")[0].id
    until = time.monotonic() + 20
    while not guard.registry.rows(heads) and time.monotonic() < until:
        time.sleep(0.02)
    (first,) = log.sealed(guard.registry)
    assert first.head.commitment == keys.commitment
    guard.answer(client, [Example(f"film {i}") for i in range(30)], sure())
    guard.flush()
    log.seal(guard.registry, keys)
    snapshot = take(guard.registry, keys)
    chain = log.sealed(guard.registry)
    for place, proof in enumerate(snapshot.proofs):
        assert proof is not None
        assert is_under(snapshot.leaf(place) or b"", proof, chain)
    assert snapshot.tallies[0].tally.kept == len(snapshot.kept)


def test_a_head_that_there_is_not_is_told(ready: Registry) -> None:
    with pytest.raises(UsageError, match="no head 3"):
        log.bind(ready, 3, published="x")


def test_a_wrong_key_seals_nothing(ready: Registry, keys: Keys) -> None:
    log.may_seal(ready, keys)
    with pytest.raises(UsageError, match="no commitment to the key"):
        log.may_seal(ready, Keys(bytes(32)))


def test_a_first_key_may_seal_an_empty_registry(registry: Registry, keys: Keys) -> None:
    log.may_seal(registry, keys)
    found = log.seal(registry, keys)
    assert found is not None
    assert found.head.commitment == keys.commitment
