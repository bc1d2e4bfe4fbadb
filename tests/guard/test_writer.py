"""What is written when: lines and decisions before their answers, nothing twice."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from sqlalchemy import event

from stillhouse.core.errors import RunError
from stillhouse.guard import writer as writing
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import Odds
from stillhouse.guard.suspicion import Evidence, joined
from stillhouse.guard.tables import events, marks, queries
from stillhouse.guard.writer import Answered, Writer


@pytest.fixture
def ann(registry: Registry, keys: Keys) -> str:
    registry.commit_to(keys)
    registry.serves("m", "model", "classification", ["a", "b"], "label", None)
    return registry.create_client("ann")[0].id


def row(client: str, keys: Keys, *, query: int = 0, kind: str = "mark") -> dict[str, Any]:
    return {"time": time.time(), "client": client, "query": query.to_bytes(16, "big"),
            "kind": kind, "text": "t", "pair": None, "read": "t", "truth": {"label": "a"},
            "served": {"label": "b"}, "target": "b", "shows": "label", "rate": 0.1,
            "controls": 9, "scope": "client", "key": keys.id, "model": "m"}  # fmt: skip


def line(client: str, query: int = 0) -> dict[str, Any]:
    return {"time": time.time(), "client": client, "query": query.to_bytes(16, "big"),
            "model": "m", "units": 1, "odd": None, "text": None, "pair": None}  # fmt: skip


def put(writer: Writer, client: str, *lines: dict[str, Any], **more: Any) -> Answered:
    """A request's lines on their way."""
    return sent(writer, client, list(lines), **more)


def sent(
    writer: Writer, client: str, lines: list[Any], *, rows: list[Any] | None = None, key: str = "k"
) -> Answered:
    answered = Answered(client, key, "m", lines, rows or [])
    writer.write(answered)
    return answered


def decide(writer: Writer, held: dict[str, Any]) -> Answered:
    """A request of one question that may be marked."""
    asked = line(held["client"]) | {"query": held["query"]}
    return sent(writer, held["client"], [asked], rows=[held], key=held["key"])


def kind(answered: Answered, timeout_s: float = 5) -> str | None:
    kinds = answered.written.result(timeout_s)
    return kinds.get(answered.lines[0]["query"])


@pytest.fixture
def writer(registry: Registry) -> Any:
    made = Writer(registry, Odds())
    made.start()
    yield made
    made.close()


def test_a_decision_is_in_the_registry_when_it_is_told(
    registry: Registry, writer: Writer, ann: str, keys: Keys
) -> None:
    assert kind(decide(writer, row(ann, keys))) == "mark"
    assert [each["kind"] for each in registry.rows(marks)] == ["mark"]
    assert len(registry.rows(queries)) == 1


def test_a_question_without_a_decision_waits_as_long(
    registry: Registry, writer: Writer, ann: str
) -> None:
    answered = put(writer, ann, line(ann, 4))
    assert kind(answered) is None
    assert len(registry.rows(queries)) == 1


def test_a_decision_is_told_to_whoever_asks_again(
    registry: Registry, writer: Writer, ann: str, keys: Keys
) -> None:
    assert kind(decide(writer, row(ann, keys))) == "mark"
    for answered in (put(writer, ann, line(ann), key=keys.id),
                     decide(writer, row(ann, keys, kind="control"))):  # fmt: skip
        assert kind(answered) == "mark"
    assert kind(put(writer, ann, line(ann), key="another")) is None


def test_what_was_asked_before_it_could_be_marked_is_never_marked(
    registry: Registry, writer: Writer, ann: str, keys: Keys
) -> None:
    assert kind(put(writer, ann, line(ann))) is None
    assert kind(decide(writer, row(ann, keys))) == "passed"
    (held,) = registry.rows(marks)
    assert held["text"] is held["read"] is None


def test_the_first_decision_holds_for_all_workers(registry: Registry, ann: str, keys: Keys) -> None:
    """Of many at once about the same question, in several workers, one is made and all know it."""
    workers = [Writer(registry, Odds()) for _ in range(4)]
    for each in workers:
        each.start()
    found: list[str | None] = []

    def ask(worker: Writer, wanted: str) -> None:
        found.append(kind(decide(worker, row(ann, keys, kind=wanted)), 20))

    threads = [
        threading.Thread(target=ask, args=(workers[n % 4], ["mark", "control"][n % 2]))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in workers:
        each.close()
    assert len(set(found)) == 1
    assert len(registry.rows(marks)) == 1


def test_the_statements_are_the_same_whether_a_question_is_kept_or_not(
    registry: Registry, ann: str, keys: Keys
) -> None:
    """But for the row of the decision itself."""
    told: list[list[str]] = []

    def note(*given: Any) -> None:
        told[-1].append(given[2].split()[0])

    writer = Writer(registry, Odds())
    event.listen(registry.engine, "before_cursor_execute", note)
    for number, rows in ((1, []), (2, [row(ann, keys, query=2)])):
        told.append([])
        writer._transact([Answered(ann, keys.id, "m", [line(ann, number)], rows)])
    event.remove(registry.engine, "before_cursor_execute", note)
    plain, kept = told
    kept.remove("INSERT")
    assert plain == kept
    assert plain.count("SELECT") >= 3


def test_lines_come_in_their_order(registry: Registry, writer: Writer, ann: str) -> None:
    for number in range(2500):
        put(writer, ann, line(ann, number))
    writer.flush()
    held = [int.from_bytes(each["query"], "big") for each in registry.rows(queries)]
    assert held == list(range(2500))


def test_what_comes_while_others_are_written_is_written_next(
    registry: Registry, writer: Writer, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.writing
    late = [line(ann, number) for number in range(1, 6)]

    def writing() -> Any:
        if late:
            put(writer, ann, late.pop(0))
        return real()

    monkeypatch.setattr(registry, "writing", writing)
    put(writer, ann, line(ann, 0))
    while late:
        writer.flush()
    writer.flush()
    assert len(registry.rows(queries)) == 6


def test_closing_writes_what_waits(registry: Registry, ann: str, keys: Keys) -> None:
    writer = Writer(registry, Odds())
    writer.start()
    put(writer, ann, line(ann, 1) | {"odd": True})
    decided = decide(writer, row(ann, keys, kind="control"))
    writer.close()
    assert kind(decided, 0) == "control"
    assert (len(registry.rows(queries)), len(registry.rows(marks))) == (2, 1)
    assert registry.client(ann).evidence.odd == 1


def test_evidence_adds_up_over_workers_and_flags(registry: Registry, ann: str) -> None:
    workers = [Writer(registry, Odds(alpha=1e-3, burst=1)) for _ in range(2)]
    for number, each in enumerate(workers):
        each.start()
        put(each, ann, *(line(ann, 10 * number + i) | {"odd": True} for i in range(3)))
    for each in workers:
        each.flush()
    found = registry.client(ann)
    assert found.distinct == found.evidence.asked == found.evidence.odd == 6
    assert found.evidence.under(Odds(burst=1)).blocks == 6
    assert found.flagged is not None
    for each in workers:
        each.close()


def test_blocks_go_on_from_worker_to_worker_in_the_order_of_the_questions(
    registry: Registry, ann: str
) -> None:
    """A hundred that come in the wrong order, in parts, by two workers; the same again is none."""
    odds, rng = Odds(burst=6), random.Random(3)
    odd = [rng.random() < 0.5 for _ in range(100)]
    lines = [line(ann, n) | {"odd": each, "time": float(n)} for n, each in enumerate(odd)]
    for at in (0, 40, 80):
        part = lines[at : at + 40] + lines[:5]
        rng.shuffle(part)
        worker = Writer(registry, odds)
        worker.start()
        put(worker, ann, *part)
        worker.close()
    found = registry.client(ann).evidence
    assert found == joined(Evidence(), odd, odds)[0]
    assert found.under(odds).blocks == 33


def test_a_thief_is_flagged_by_blocks_and_the_owner_told_why(registry: Registry, ann: str) -> None:
    worker = Writer(registry, Odds(burst=4))
    worker.start()
    for at in range(0, 600, 100):
        put(
            worker, ann,
            *(line(ann, n) | {"odd": n >= 300, "time": float(n)} for n in range(at, at + 100)),
        )  # fmt: skip
        worker.flush()
    worker.close()
    assert registry.client(ann).flagged is not None
    (event,) = [each for each in registry.rows(events) if each["kind"] == "flagged"]
    assert event["detail"].endswith("new questions are odd, 12 of the 12 latest")


def test_a_question_counts_once_whoever_answers_it(registry: Registry, ann: str) -> None:
    for _ in range(2):  # as after a restart
        workers = [Writer(registry, Odds()) for _ in range(2)]
        for each in workers:
            each.start()
            put(each, ann, *[line(ann, 7) | {"odd": True}] * 3)
            each.flush()
            each.close()
    found = registry.client(ann)
    assert (found.distinct, found.evidence.asked, found.evidence.odd) == (1, 1, 1)
    assert len(registry.rows(queries)) == 12


def test_questions_that_nobody_judged_are_no_evidence(registry: Registry, ann: str) -> None:
    writer = Writer(registry, Odds())
    writer.start()
    put(writer, ann, *(line(ann, number) for number in range(2000)))
    writer.flush()
    writer.close()
    found = registry.client(ann)
    assert (found.distinct, found.evidence.asked, found.evidence.window) == (2000, 0, 1)


def test_what_the_database_refuses_holds_nothing_else_up(
    registry: Registry, writer: Writer, ann: str, keys: Keys
) -> None:
    bad = decide(writer, row(ann, keys, query=1) | {"truth": {"label": object()}})
    nobodys = put(writer, "nobody", line("nobody", 1))
    good = decide(writer, row(ann, keys, query=3))
    assert kind(good) == "mark"
    for each in (bad, nobodys):
        with pytest.raises(RunError, match="can't be written"):
            each.written.result(5)
    writer.flush()
    assert [each["client"] for each in registry.rows(queries)] == [ann]


def test_a_database_that_is_away_loses_nothing(
    registry: Registry, ann: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, real, away = Writer(registry, Odds()), registry.writing, threading.Event()
    away.set()

    def sometimes() -> Any:
        if away.is_set():
            raise RunError("away")
        return real()

    monkeypatch.setattr(registry, "writing", sometimes)
    monkeypatch.setattr(writing, "PAUSE_S", 0.01)
    writer.start()
    future = decide(writer, row(ann, keys))
    left = put(writer, ann, line(ann, 8))
    time.sleep(0.2)
    assert not future.written.done()  # no answer leaves
    left.given_up = True
    assert writer.trouble == "away"
    away.clear()
    assert kind(future) == "mark"
    writer.flush()
    assert writer.trouble is None
    writer.close()
    assert len(registry.rows(queries)) == 1
    assert registry.client(ann).distinct == 1


def test_a_full_log_refuses_more(
    registry: Registry, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MOST", 10)
    writer = Writer(registry, Odds())  # not started: the database is as good as away
    put(writer, ann, *[line(ann)] * 10)
    with pytest.raises(RunError, match="log is full"):
        put(writer, ann, line(ann))


def test_a_closed_writer_decides_nothing(registry: Registry, ann: str, keys: Keys) -> None:
    writer = Writer(registry, Odds())
    writer.start()
    writer.close()
    with pytest.raises(RunError, match="closing"):
        decide(writer, row(ann, keys))
