"""A client's view of a guarded model in the same process: what the audit asks, as a stranger would.

The ledger, the budget and what is kept are the audit's own, as over HTTP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.core.errors import RunError
from stillhouse.core.progress import Advance
from stillhouse.core.types import Example
from stillhouse.extract.client import OverBudget
from stillhouse.extract.ledger import Ledger, name_of
from stillhouse.extract.prices import Tariff
from stillhouse.guard.guard import Guard
from stillhouse.guard.model import ServedModel
from stillhouse.guard.purses import Denied

AT_ONCE = 64


class GuardedModel:
    """One client of a guarded model, as a service for `stillhouse.audit`: `sh.audit(GuardedModel(
    guard, model, client), data, ...)`."""

    def __init__(self, guard: Guard, model: ServedModel, client: str) -> None:
        self._guard, self._model = guard, model
        self._client = guard.registry.named(client).id
        self.name = f"{model.name} behind its guard, as {client}"
        settings = hashlib.blake2b(guard.config.model_dump_json().encode(), digest_size=8)
        about = f"{model.fingerprint}-{settings.hexdigest()}-{guard.keys.id}-{self._client}"
        self.fingerprint = f"guarded-{about}"
        self.choices: Sequence[str] | None = model.choices or None

    def ask(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Answers as the service gives them. Raises Denied, DataError, RunError."""
        return self._guard.answer(
            self._client, examples, self._model.answers,
            reads=self._model.reads,
        )  # fmt: skip

    def open(self, store: Path, tariff: Tariff, limit: int | None) -> Session:
        return Session(self, Ledger(store / "apis" / self.fingerprint, tariff), limit)


class Session:
    """Asks, and writes down what was answered."""

    def __init__(self, model: GuardedModel, ledger: Ledger, limit: int | None) -> None:
        self.ledger = ledger
        self._model, self._limit = model, limit
        self._held: dict[str, dict[str, Any]] = {}
        for kept in ledger.bodies:
            self._held |= dict(zip(kept.asked, kept.body, strict=True))

    def close(self) -> None:
        pass

    def ask(self, examples: Sequence[Example], progress: Advance) -> list[dict[str, Any]]:
        """From the ledger where it can be. Raises OverBudget, and RunError for what the guard
        denies."""
        each = {name_of(e): e for e in examples}
        lacking = [e for name, e in each.items() if name not in self._held]
        progress(len(examples) - len(lacking))
        for at in range(0, len(lacking), AT_ONCE):
            few = lacking[at : at + AT_ONCE]
            sent = self.ledger.send(few, self._limit)
            if len(sent) < len(few):
                self.ledger.refused(sent)
                raise OverBudget(
                    f"the budget of {self._limit:,} queries is spent before all was answered: "
                    "raise it (--limit), or ask less; what was answered is kept"
                )
            try:
                found = self._model.ask(few)
            except Denied as error:
                self.ledger.refused(few)
                raise RunError(f"{self._model.name}: {error}; what was answered is kept") from None
            self.ledger.answered(few, found)
            self._held |= dict(zip(map(name_of, few), found, strict=True))
            progress(len(few))
        return [self._held[name_of(e)] for e in examples]
