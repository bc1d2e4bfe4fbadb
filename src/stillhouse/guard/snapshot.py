"""What of the registry a verdict stands on, taken once and kept beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stillhouse.core.errors import UsageError
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Kept, Registry
from stillhouse.guard.tables import keys as key_table
from stillhouse.guard.tables import models as model_table


@dataclass(frozen=True)
class Snapshot:
    """What of the registry a verdict stands on."""

    key: str
    commitment: str
    committed: float
    model: str
    name: str
    task: str
    choices: list[str]
    clients: dict[str, str]  # names by id
    kept: list[Kept]

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        for row in found["kept"]:
            row["query"] = row["query"].hex()
        return found

    @classmethod
    def of_json(cls, held: dict[str, Any]) -> Snapshot:
        rows: list[dict[str, Any]] = held["kept"]
        kept = [Kept(**{**row, "query": bytes.fromhex(row["query"])}) for row in rows]
        rest: dict[str, Any] = {name: held[name] for name in held if name != "kept"}
        return cls(kept=kept, **rest)


def take(
    registry: Registry, keys: Keys, *, model: str | None = None, clients: Sequence[str] = ()
) -> Snapshot:
    """The registry's evidence, of the model whose fingerprint begins so and of these clients (of
    none given: of all). Raises UsageError where there is none for this key."""
    rows = registry.rows(key_table, key_table.c.id == keys.id)
    if not rows:
        raise UsageError(
            f"the registry has no commitment to the key {keys.id}: it is not the one that served"
        )
    if rows[0]["commitment"] != keys.commitment:
        raise UsageError("the registry's commitment is to another key than this one")
    served = registry.rows(model_table)
    if model is not None:
        served = [row for row in served if row["id"].startswith(model)]
    with_evidence = [row for row in served if registry.evidence(model=row["id"])]
    if not with_evidence:
        raise UsageError("the registry has no marks (of this model): nothing can be proved")
    if len(with_evidence) > 1:
        listed = ", ".join(f"{row['name']} ({row['id'][:8]})" for row in with_evidence)
        raise UsageError(f"several models have marks: say which with --set model=: {listed}")
    (marked,) = with_evidence
    wanted = {registry.named(name).id for name in clients}
    kept = [
        each
        for each in registry.evidence(model=marked["id"])
        if each.key == keys.id and (not wanted or each.client in wanted)
    ]
    if not kept:
        raise UsageError(
            f"no mark was made with the key {keys.id} for these clients: nothing can be proved"
        )
    names = {row.id: row.name for row in registry.clients()}
    return Snapshot(
        keys.id, keys.commitment, rows[0]["created"], marked["id"], marked["name"],
        marked["task"], marked["choices"], {each.client: names[each.client] for each in kept}, kept,
    )  # fmt: skip


def written(value: object) -> str:
    """As it is kept, signed and digested: JSON, keys in order."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
