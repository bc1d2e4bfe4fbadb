"""What of the registry a verdict stands on, taken once and kept beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from stillhouse.core.errors import UsageError
from stillhouse.core.results import Result
from stillhouse.guard.chain import Proof, TallyProof, leaf
from stillhouse.guard.heads import proofs, tallies
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Kept, Registry
from stillhouse.guard.tables import keys as key_table
from stillhouse.guard.tables import models as model_table

BYTES = [name for name, each in Kept.__dataclass_fields__.items() if "bytes" in str(each.type)]


class Answered(Result):
    """What one model said of all kept questions, form by form, and when (Unix time)."""

    name: str
    fingerprint: str
    control: bool
    said: dict[str, list[str]]
    first: float | None = None
    last: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """What of the registry a verdict stands on. proofs: where each kept question is under the log
    heads, None of one that no head has; tallies: how many there are of each client; left_out: how
    many were not taken, because no stamp binds them."""

    key: str
    commitment: str
    committed: float
    model: str
    name: str
    task: str
    choices: list[str]
    clients: dict[str, str]  # names by id
    kept: list[Kept]
    proofs: list[Proof | None] = field(default_factory=list)
    tallies: list[TallyProof] = field(default_factory=list)
    left_out: int = 0

    def as_json(self) -> dict[str, Any]:
        kept = [
            {name: value.hex() if isinstance(value, bytes) else value
             for name, value in asdict(each).items()}
            for each in self.kept
        ]  # fmt: skip
        rest = {name: getattr(self, name) for name in REST}
        proofs = [None if each is None else each.model_dump() for each in self.proofs]
        return rest | {
            "kept": kept, "proofs": proofs, "tallies": [each.model_dump() for each in self.tallies],
        }  # fmt: skip

    @classmethod
    def of_json(cls, held: dict[str, Any]) -> Snapshot:
        """Raises ValueError, TypeError or KeyError for what is no snapshot."""
        TypeAdapter(Snapshot).validate_json(json.dumps(held, allow_nan=False), strict=True)
        kept = [_kept(row) for row in held["kept"]]
        return cls(
            kept=kept,
            proofs=TypeAdapter(list[Proof | None]).validate_python(held.get("proofs", [])),
            tallies=TypeAdapter(list[TallyProof]).validate_python(held.get("tallies", [])),
            **{name: value for name, value in held.items() if name not in PARTS},
        )

    def leaf(self, place: int) -> bytes | None:
        """The hash of a kept question as the log heads have it; None without a proof."""
        proof = self.proofs[place] if place < len(self.proofs) else None
        if proof is None:
            return None
        return leaf(asdict(self.kept[place]), bytes.fromhex(proof.salt))

    def only(self, places: Sequence[int]) -> Snapshot:
        """The same of some of the kept questions, in this order."""
        kept = [self.kept[i] for i in places]
        names = {each.client: self.clients[each.client] for each in kept}
        found = [self.proofs[i] if i < len(self.proofs) else None for i in places]
        return replace(self, kept=kept, proofs=found, clients=names)


PARTS = ("kept", "proofs", "tallies")
REST = [name for name in Snapshot.__dataclass_fields__ if name not in PARTS]


def _kept(row: Mapping[str, Any]) -> Kept:
    values: dict[str, Any] = {
        name: bytes.fromhex(value) if name in BYTES and value is not None else value
        for name, value in row.items()
    }
    return Kept(**values)


def take(
    registry: Registry, keys: Keys, *, model: str | None = None, clients: Sequence[str] = (),
    up_to: int | None = None,
) -> Snapshot:  # fmt: skip
    """The registry's evidence, of the model whose fingerprint begins so and of these clients (of
    none given: of all); with `up_to` only what the log heads have up to that one. Raises UsageError
    where there is none for this key."""
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
    where = proofs(registry, model=marked["id"], key=keys.id)
    found = Snapshot(
        keys.id, keys.commitment, rows[0]["created"], marked["id"], marked["name"],
        marked["task"], marked["choices"], {each.client: names[each.client] for each in kept}, kept,
        [where.get((each.client, bytes(each.query), each.key, each.model)) for each in kept],
    )  # fmt: skip
    last = max((each.head for each in found.proofs if each is not None), default=0)
    if up_to is not None:
        last = min(last, up_to)
        found = found.only([i for i, p in enumerate(found.proofs) if p and p.head <= last])
        if not found.kept:
            raise UsageError(
                "no time stamp binds a question of these clients yet: stamp a newer log head, or "
                "judge without stamps (--unstamped)"
            )
    counted = tallies(registry, model=marked["id"], key=keys.id, up_to=last)
    return replace(
        found, left_out=len(kept) - len(found.kept),
        tallies=[counted[client] for client in found.clients if client in counted],
    )  # fmt: skip


def written(value: object) -> str:
    """As it is kept, signed and digested: JSON, keys in order."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
