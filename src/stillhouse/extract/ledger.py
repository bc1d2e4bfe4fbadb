"""What was sent to an API and what came back, written down before and after: nothing is paid for
twice, and a budget is not exceeded, whatever is killed when.

A line is written and on disk before a request goes out. A request whose answer never came may have
been charged for, so it counts as spent, and its texts are asked again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stillhouse.core.errors import RunError
from stillhouse.core.private import PRIVATE, close_to_world, private_folder
from stillhouse.core.rundir import writes
from stillhouse.core.types import Example
from stillhouse.data.rows import content_key
from stillhouse.extract.prices import Tariff

LEDGER = "ledger.jsonl"
APPEND = os.O_CREAT | os.O_APPEND | os.O_WRONLY | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Spent:
    """What requests so far came to."""

    queries: int = 0
    characters: int = 0
    units: int = 0

    def and_(self, other: Spent) -> Spent:
        return Spent(
            self.queries + other.queries,
            self.characters + other.characters,
            self.units + other.units,
        )


@dataclass(frozen=True)
class Body:
    """A request's answer as it came, and the names of its queries."""

    asked: list[str]
    body: Any


def cost_of(examples: Sequence[Example], tariff: Tariff) -> Spent:
    """What these queries come to."""
    return Spent(
        len(examples),
        sum(len(each.text) + len(each.pair or "") for each in examples),
        sum(tariff.units(each.text, each.pair) for each in examples),
    )


def name_of(example: Example) -> str:
    """What a query is called in a ledger: nothing of it can be read from that."""
    return content_key(example.text, example.pair).hex()


def answered(folder: Path) -> tuple[set[str], int]:
    """The names of what a ledger in `folder` has answers to, and how many queries were sent, as it
    stands now: another process may be writing it."""
    names: set[str] = set()
    sent = 0
    path = folder / LEDGER
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            break  # cut off, or damaged: opening it in earnest tells
        names.update(entry.get("asked", ()))
        sent += entry.get("sent", {}).get("queries", 0)
    return names, sent


class Ledger:
    """One API's requests and answers in a folder. One process at a time. Raises RunError."""

    def __init__(self, folder: Path, tariff: Tariff) -> None:
        self.folder, self.tariff = folder, tariff
        self.spent = Spent()
        self.bodies: list[Body] = []
        with writes(folder):
            private_folder(folder)
        self._owner = FileLock(folder / "lock", mode=PRIVATE)
        try:
            self._owner.acquire(timeout=0)
        except Timeout:
            raise RunError(f"another audit is asking for {folder}: wait for it") from None
        self._lock = threading.Lock()
        self._path = folder / LEDGER
        self._read()
        with writes(self._path):
            close_to_world(self._path)
            self._file = os.fdopen(os.open(self._path, APPEND, PRIVATE), "ab")

    def _read(self) -> None:
        """Everything that is whole; a torn last line is cut off."""
        if not self._path.exists():
            return
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                except ValueError:
                    raise RunError(
                        f"{self._path} is damaged: what was paid can't be told; move {self.folder} "
                        "away to begin anew"
                    ) from None
                if "sent" in entry:
                    self.spent = self.spent.and_(Spent(**entry["sent"]))
                else:
                    self.bodies.append(Body(entry["asked"], entry["body"]))
                whole += len(line)
        with self._path.open("r+b") as file:
            file.truncate(whole)

    def send(self, examples: Sequence[Example], limit: int | None = None) -> Sequence[Example]:
        """Writes down that these are sent; as many as the limit (queries in all) still allows."""
        with self._lock:
            if limit is not None:
                examples = examples[: max(0, limit - self.spent.queries)]
            if examples:
                cost = cost_of(examples, self.tariff)
                self._write({"sent": vars(cost)})
                self.spent = self.spent.and_(cost)
            return examples

    def answered(self, examples: Sequence[Example], body: Any) -> None:
        """Writes down what came back, as it came: whether it can be read or not, it was paid."""
        names = [name_of(each) for each in examples]
        with self._lock:
            self._write({"asked": names, "body": body})
            self.bodies.append(Body(names, body))

    def refused(self, examples: Sequence[Example]) -> None:
        """Takes a request back that the API turned away unanswered."""
        cost = cost_of(examples, self.tariff)
        back = Spent(-cost.queries, -cost.characters, -cost.units)
        with self._lock:
            self._write({"sent": vars(back)})
            self.spent = self.spent.and_(back)

    def _write(self, entry: object) -> None:
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(
                f"can't write {self._path}: {error.strerror}; nothing more is asked"
            ) from error

    def close(self) -> None:
        self._file.close()
        self._owner.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
