"""The registry's log heads: decisions that no head has are sealed under a new one, by whichever
worker comes first; heads are bound from outside by time stamps, or by being published.

Decisions become visible out of order where several workers write: a head takes all that no head
has, whatever their numbers are.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from stillhouse.core.errors import UsageError
from stillhouse.guard.chain import (
    SALT,
    START,
    Head,
    Proof,
    SealedHead,
    Tally,
    TallyProof,
    Tree,
    leaf,
    signed,
)
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import IS_EVIDENCE, Registry
from stillhouse.guard.tables import bindings, heads, leaves, marks, queries
from stillhouse.guard.tables import keys as key_table

DAY_S = 86_400.0
LOOK_S = 600.0  # how often a worker looks whether a head is due
MOST = 20_000  # decisions under one head: bounds how long others wait
AT_ONCE = 1_000  # leaves of one statement
LOCK = 5392  # PostgreSQL's, of sealing

Place = tuple[str, bytes, str, str]  # client, query, key, model: what names a decision


class Daily:
    """Called often, seals what is new once a day, and at once for a key that no head commits to."""

    def __init__(self, registry: Registry, keys: Keys) -> None:
        self._registry, self._keys, self._looked = registry, keys, -math.inf

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        found = seal(self._registry, self._keys, every_s=DAY_S)
        if found is None or found.head.decisions < MOST:  # else there may be more
            self._looked = now


def seal(registry: Registry, keys: Keys, *, every_s: float = 0.0) -> SealedHead | None:
    """A new head over the decisions that none has (20,000 at most); None where nothing is new, or
    where the last head is younger than `every_s` and was not full."""
    with registry.writing() as connection:
        if not registry.is_sqlite and not _locked(connection, waits=not every_s):
            return None  # another worker does it
        before = connection.execute(
            sa.select(heads).order_by(heads.c.number.desc()).limit(1)
        ).first()
        last = None if before is None else Head.model_validate_json(before.body)
        now, known = time.time(), False
        if last is not None:
            known = last.commitment == keys.commitment
            young = abs(now - last.time) < every_s  # after a change of the clock too
            if known and young and last.decisions < MOST:
                return None
        unsealed = (
            sa.select(marks)
            .outerjoin(leaves, leaves.c.mark == marks.c.id)
            .where(leaves.c.id.is_(None))
            .order_by(marks.c.id)
            .limit(MOST)
        )
        rows = [dict(row._mapping) for row in connection.execute(unsealed)]  # pyright: ignore[reportPrivateUsage]
        if known and not rows:
            return None
        log = connection.execute(sa.select(sa.func.max(queries.c.id))).scalar() or 0
        return _append(connection, keys, last, rows, time=now, log=log)


def seal_all(registry: Registry, keys: Keys) -> None:
    """Seals all that no head has now; what comes meanwhile waits for the next time."""
    while (found := seal(registry, keys)) is not None and found.head.decisions == MOST:
        pass


def may_seal(registry: Registry, keys: Keys) -> None:
    """Commits to a registry's first key. Raises UsageError for a key that it has not, where it has
    others: heads by a wrong key would bind nothing."""
    known = [row["id"] for row in registry.rows(key_table)]
    if known and keys.id not in known:
        raise UsageError(f"the registry has no commitment to the key {keys.id}: is it another's?")
    registry.commit_to(keys)


def _locked(connection: sa.Connection, *, waits: bool) -> bool:
    """Whether PostgreSQL gives this transaction the lock of sealing. SQLite needs none: there, one
    transaction writes at a time."""
    if waits:
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        return True
    return bool(connection.execute(sa.text(f"SELECT pg_try_advisory_xact_lock({LOCK})")).scalar())


def _append(
    connection: sa.Connection, keys: Keys, last: Head | None, rows: list[dict[str, Any]],
    *, time: float, log: int,
) -> SealedHead:  # fmt: skip
    """Writes a head and its leaves: a client's decisions in their order, then the tallies."""
    rows.sort(key=lambda row: (row["client"], row["id"]))
    number = 1 if last is None else last.number + 1
    sealed: list[dict[str, Any]] = []

    def add(what: Mapping[str, Any], client: str, **more: Any) -> None:
        salt = secrets.token_bytes(SALT)
        sealed.append(
            {"head": number, "place": len(sealed), "hash": leaf(what, salt), "client": client,
             "salt": salt, "mark": None, "tally": None, **more}
        )  # fmt: skip

    for row in rows:
        add(row, row["client"], mark=row["id"])
    for tally in _tallies(connection, rows):
        add(tally.model_dump(), tally.client, tally=tally.model_dump())
    times = [row["time"] for row in rows]
    head = Head(
        number=number, time=time, decisions=len(rows), leaves=len(sealed), log=log,
        first=min(times, default=None), last=max(times, default=None),
        root=Tree([each["hash"] for each in sealed]).root.hex(),
        previous=START if last is None else last.hash,
        commitment=keys.commitment, public_key=keys.public,
    )  # fmt: skip
    found = signed(head, keys)
    connection.execute(
        sa.insert(heads).values(
            number=number, time=head.time, first=head.first, last=head.last,
            decisions=head.decisions, root=head.root, previous=head.previous, head=head.hash,
            body=head.body.decode(), signature=found.signature,
        )
    )  # fmt: skip
    for at in range(0, len(sealed), AT_ONCE):
        connection.execute(sa.insert(leaves), sealed[at : at + AT_ONCE])
    return found


def _tallies(connection: sa.Connection, rows: list[dict[str, Any]]) -> list[Tally]:
    """How many questions were kept in all, of those clients, models and keys that have new ones."""
    new = Counter(
        (row["client"], row["model"], row["key"])
        for row in rows
        if row["kind"] != "passed" and row["read"] is not None
    )
    group = [marks.c.client, marks.c.model, marks.c.key]
    before = (
        sa.select(*group, sa.func.count())
        .join(leaves, leaves.c.mark == marks.c.id)
        .where(IS_EVIDENCE, marks.c.client.in_({client for client, _, _ in new}))
        .group_by(*group)
    )
    held: dict[tuple[str, str, str], int] = {
        tuple(row[:3]): row[3] for row in map(tuple, connection.execute(before))
    }
    return [
        Tally(client=c, model=m, key=k, kept=held.get((c, m, k), 0) + count)
        for (c, m, k), count in sorted(new.items())
    ]


def sealed(registry: Registry) -> list[SealedHead]:
    """All heads, from the first on, with what binds them."""
    found = []
    stamps: dict[int, list[str]] = {}
    published: dict[int, list[str]] = {}
    for row in registry.rows(bindings):
        if row["stamp"] is not None:
            stamps.setdefault(row["head"], []).append(bytes(row["stamp"]).hex())
        if row["published"] is not None:
            published.setdefault(row["head"], []).append(row["published"])
    for row in registry.rows(heads):
        found.append(
            SealedHead(
                head=Head.model_validate_json(row["body"]), signature=row["signature"],
                stamps=stamps.get(row["number"], []), published=published.get(row["number"], []),
            )
        )  # fmt: skip
    return found


def bind(
    registry: Registry, number: int, *, stamp: bytes | None = None, published: str | None = None
) -> None:
    """Writes down what binds a head: a stamp that was checked, or where it was published. Raises
    UsageError for a head that there is not."""
    if not registry.rows(heads, heads.c.number == number):
        raise UsageError(f"there is no head {number}: see stillhouse guard heads")
    row = {"head": number, "time": time.time(), "stamp": stamp, "published": published}
    with registry.writing() as connection:
        connection.execute(sa.insert(bindings).values(row))


def proofs(registry: Registry, *, model: str, key: str) -> dict[Place, Proof]:
    """Where each decision about a model's questions is, of those that a head has."""
    chosen = (
        sa.select(
            marks.c.client, marks.c.query, leaves.c.head, leaves.c.place, leaves.c.salt
        )
        .join(leaves, leaves.c.mark == marks.c.id)
        .where(marks.c.model == model, marks.c.key == key, IS_EVIDENCE)
    )  # fmt: skip
    with registry.reading() as connection:
        rows = list(connection.execute(chosen))
    trees = _trees(registry, {row.head for row in rows})
    return {
        (row.client, bytes(row.query), key, model): _proof(trees[row.head], row.head, row)
        for row in rows
    }


def tallies(registry: Registry, *, model: str, key: str, up_to: int) -> dict[str, TallyProof]:
    """Each client's last tally under a head of at most this number, by client."""
    chosen = (
        sa.select(leaves.c.head, leaves.c.place, leaves.c.salt, leaves.c.tally)
        .where(leaves.c.tally.is_not(None), leaves.c.head <= up_to)
        .order_by(leaves.c.head)
    )
    with registry.reading() as connection:
        rows = [
            row
            for row in connection.execute(chosen)
            if (row.tally["model"], row.tally["key"]) == (model, key)
        ]
    last = {row.tally["client"]: row for row in rows}
    trees = _trees(registry, {row.head for row in last.values()})
    return {
        client: TallyProof(
            tally=Tally.model_validate(row.tally), proof=_proof(trees[row.head], row.head, row)
        )
        for client, row in last.items()
    }


def _proof(tree: Tree, head: int, row: Any) -> Proof:
    path = [each.hex() for each in tree.path(row.place)]
    return Proof(head=head, place=row.place, salt=bytes(row.salt).hex(), path=path)


def _trees(registry: Registry, numbers: Iterable[int]) -> dict[int, Tree]:
    found = {}
    for number in sorted(numbers):
        chosen = sa.select(leaves.c.hash).where(leaves.c.head == number).order_by(leaves.c.place)
        with registry.reading() as connection:
            found[number] = Tree([bytes(row.hash) for row in connection.execute(chosen)])
    return found
