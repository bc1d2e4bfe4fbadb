"""The registry: who asked what, which answers were marked, what happened."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from stillhouse.core.errors import UsageError
from stillhouse.guard.database import Database
from stillhouse.guard.keys import Keys
from stillhouse.guard.suspicion import Evidence
from stillhouse.guard.tables import (
    clients,
    events,
    keys,
    leaves,
    marks,
    models,
    queries,
    verdicts,
)

Role = Literal["client", "owner"]
LONGEST_NAME = 200
ANEW: dict[str, Any] = {"asked": 0, "odd": 0, "bets": None, "window": clients.c.window + 1}
IS_EVIDENCE = (marks.c.kind != "passed") & marks.c.read.is_not(None)  # NULL: an earlier version's
API_KEY = re.compile(r"sh_([0-9a-f]{12})_([0-9a-f]{64})")


@dataclass(frozen=True)
class ClientRow:
    """A client as the registry has it. queries, money, per_s, token_budget, tokens_per_s: its own
    limits, where it has any."""

    id: str
    name: str
    role: Role
    created: float
    revoked: float | None
    queries: int | None
    money: float | None
    per_s: float | None
    token_budget: int | None
    tokens_per_s: float | None
    charged: int
    token_charge: int
    units: int
    distinct: int
    evidence: Evidence
    flagged: float | None


@dataclass(frozen=True)
class Kept:
    """A question that is evidence. read: what the model read of it, which all was drawn from;
    truth, served: answers as the service shows them; target: the wrong answer that the key gave
    it, whether it was marked or not; shows: the view; rate, controls, scope: the settings by which
    it was drawn."""

    client: str
    query: bytes
    kind: str
    text: str
    pair: str | None
    read: str
    truth: dict[str, Any]
    served: dict[str, Any]
    target: str
    shows: str
    rate: float
    controls: int
    scope: str
    key: str
    model: str
    time: float


class Registry(Database):
    """What is known of clients, questions and models. Raises UsageError for an address that is
    none, RunError where it can't be reached."""

    # clients

    def create_client(
        self,
        name: str,
        *,
        role: Role = "client",
        queries: int | None = None,
        money: float | None = None,
        per_s: float | None = None,
        tokens: int | None = None,
        tokens_per_s: float | None = None,
    ) -> tuple[ClientRow, str]:
        """A new client and its API key, which is nowhere else. Raises UsageError for a name that is
        taken or none, and for limits that are no numbers."""
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise UsageError(f"a client's name is one line of 1 to {LONGEST_NAME} characters")
        numbers = (money, per_s, tokens_per_s)
        if any(each is not None and not math.isfinite(each) for each in numbers):
            raise UsageError("a client's budget and rate are finite numbers: leave out for none")
        found, secret = secrets.token_hex(6), secrets.token_hex(32)
        with self.writing() as connection:
            taken = sa.select(clients.c.id).where(clients.c.name == name)
            if connection.execute(taken).first():
                raise UsageError(f"there is a client {name!r} already: give another name")
            connection.execute(
                sa.insert(clients).values(
                    id=found, name=name, role=role, secret=_hashed(secret), created=time.time(),
                    queries=queries, money=money, per_s=per_s, token_budget=tokens,
                    tokens_per_s=tokens_per_s,
                )
            )  # fmt: skip
            _event(connection, "created", role, found)
        return self.client(found), f"sh_{found}_{secret}"

    def revoke(self, name: str) -> bool:
        """Ends a client's key; whether it had not ended before. Raises UsageError for a client that
        there is not."""
        row = self.named(name)
        with self.writing() as connection:
            done = connection.execute(
                sa.update(clients)
                .where(clients.c.id == row.id, clients.c.revoked.is_(None))
                .values(revoked=time.time())
            ).rowcount
            if done:
                _event(connection, "revoked", "", row.id)
        return bool(done)

    def client(self, found: str) -> ClientRow:
        (row,) = self.clients(clients.c.id == found)
        return row

    def named(self, name: str) -> ClientRow:
        """By name or id. Raises UsageError."""
        rows = self.clients(sa.or_(clients.c.name == name, clients.c.id == name))
        if not rows:
            raise UsageError(f"there is no client {name!r}: see stillhouse clients list")
        return rows[0]

    def clients(self, *where: Any) -> list[ClientRow]:
        """In the order they were made."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(clients).where(*where).order_by(clients.c.created))
            return [_client(row) for row in rows]

    def identify(self, key: str) -> ClientRow | None:
        """Whose API key this is; None for one that is nobody's, or was revoked."""
        match = API_KEY.fullmatch(key)
        if not match:
            return None
        with self.reading() as connection:
            row = connection.execute(sa.select(clients).where(clients.c.id == match[1])).first()
        if row is None or not hmac.compare_digest(row.secret, _hashed(match[2])):
            return None
        return None if row.revoked is not None else _client(row)

    def flag(self, name: str, detail: str) -> bool:
        """Flags a client for a reason; whether it was not flagged before. Raises UsageError for a
        client that there is not, and for a reason that is none."""
        if not detail.strip() or not detail.isprintable() or len(detail) > LONGEST_NAME:
            raise UsageError(f"the reason is one line of 1 to {LONGEST_NAME} characters")
        row = self.named(name)
        with self.writing() as connection:
            return flag(connection, row.id, detail)

    def unflag(self, name: str) -> bool:
        """Takes a flag back, and the evidence with it; whether there was one. Raises UsageError."""
        row = self.named(name)
        with self.writing() as connection:
            done = connection.execute(
                sa.update(clients)
                .where(clients.c.id == row.id, clients.c.flagged.is_not(None))
                .values(flagged=None, **ANEW)
            ).rowcount
            if done:
                _event(connection, "unflagged", "", row.id)
        return bool(done)

    def forget(self, name: str) -> int:
        """Deletes all that a client asked, its evidence included; how many rows went. Of leaves of
        log heads only the hashes stay, which tell nothing without their salts. Raises UsageError.
        """
        row = self.named(name)
        with self.writing() as connection:
            connection.execute(
                sa.update(leaves)
                .where(leaves.c.client == row.id)
                .values(mark=None, client=None, salt=None, tally=None)
            )
            gone = sum(
                connection.execute(sa.delete(table).where(table.c.client == row.id)).rowcount
                for table in (queries, marks)
            )
            connection.execute(
                sa.update(clients).where(clients.c.id == row.id).values(distinct=0, **ANEW)
            )
            _event(connection, "forgotten", f"{gone} rows", row.id)
        return gone

    def retain(self, days: float) -> int:
        """Deletes log rows older than that; evidence stays. How many went."""
        with self.writing() as connection:
            old = queries.c.time < time.time() - days * 86_400
            return connection.execute(sa.delete(queries).where(old)).rowcount

    # keys and models

    def commit_to(self, owner: Keys) -> None:
        """Writes down a key's commitment, once."""
        row = {
            "id": owner.id, "commitment": owner.commitment, "public": owner.public,
            "created": time.time(),
        }  # fmt: skip
        with self.writing() as connection:
            connection.execute(self.insert(keys).values(row).on_conflict_do_nothing())

    def serves(
        self,
        fingerprint: str,
        name: str,
        task: str,
        choices: Sequence[str],
        shows: str,
        curve: dict[str, Any] | None,
    ) -> None:
        """Writes down which model answers."""
        row = {
            "id": fingerprint, "name": name, "task": task, "choices": list(choices),
            "shows": shows, "curve": curve, "served": time.time(),
        }  # fmt: skip
        changed = {k: row[k] for k in ("name", "shows", "curve")}
        with self.writing() as connection:
            statement = self.insert(models).values(row)
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))

    def rows(self, table: sa.Table, *where: Any, last: int | None = None) -> list[dict[str, Any]]:
        """Rows of a table, oldest first; with `last`, the latest so many, newest first."""
        chosen = sa.select(table).where(*where)
        order = [table.c.id.desc()] if last else list(table.primary_key)
        with self.reading() as connection:
            found = connection.execute(chosen.order_by(*order).limit(last))
            return [dict(row._mapping) for row in found]  # pyright: ignore[reportPrivateUsage]

    def evidence(self, *, model: str | None = None, client: str | None = None) -> list[Kept]:
        """The marks and controls, in the order they were kept."""
        where: list[Any] = [IS_EVIDENCE]
        if model is not None:
            where.append(marks.c.model == model)
        if client is not None:
            where.append(marks.c.client == client)
        return [
            Kept(**{name: row[name] for name in Kept.__dataclass_fields__})
            for row in self.rows(marks, *where)
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many rows each client has in the evidence, by kind."""
        chosen = sa.select(marks.c.client, marks.c.kind, sa.func.count()).group_by(
            marks.c.client, marks.c.kind
        )
        found: dict[str, dict[str, int]] = {}
        with self.reading() as connection:
            for client, kind, count in connection.execute(chosen):
                found.setdefault(client, {})[kind] = count
        return found

    def since(self, moment: float) -> dict[str, int]:
        """How many questions each client asked since then."""
        chosen = (
            sa.select(queries.c.client, sa.func.count())
            .where(queries.c.time >= moment)
            .group_by(queries.c.client)
        )
        with self.reading() as connection:
            return {client: count for client, count in connection.execute(chosen)}  # noqa: C416

    def judged(self, suspect: str, sentence: str, record: bytes, signature: str) -> None:
        """Writes down a verdict."""
        row = {
            "time": time.time(), "suspect": suspect, "sentence": sentence,
            "record": hashlib.sha256(record).hexdigest(), "signature": signature,
        }  # fmt: skip
        with self.writing() as connection:
            connection.execute(sa.insert(verdicts).values(row))
            _event(connection, "verdict", f"{suspect}: {sentence}")


def flag(connection: sa.Connection, client: str, detail: str) -> bool:
    """Flags a client that isn't yet; whether it was not."""
    done = connection.execute(
        sa.update(clients)
        .where(clients.c.id == client, clients.c.flagged.is_(None))
        .values(flagged=time.time())
    )
    if done.rowcount:
        _event(connection, "flagged", detail, client)
    return bool(done.rowcount)


def evidence_of(row: Any) -> Evidence:
    """Of a row of clients."""
    return Evidence(row.asked, row.odd, row.window, row.bets or {})


def _event(connection: sa.Connection, kind: str, detail: str, client: str | None = None) -> None:
    row = {"time": time.time(), "client": client, "kind": kind, "detail": detail}
    connection.execute(sa.insert(events).values(row))


def _client(row: Any) -> ClientRow:
    held = dict(row._mapping)
    held["evidence"] = evidence_of(row)
    return ClientRow(**{name: held[name] for name in ClientRow.__dataclass_fields__})


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
