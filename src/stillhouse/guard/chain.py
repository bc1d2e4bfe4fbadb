"""Log heads: what binds an owner to decisions. Each head is the root of a Merkle tree of decisions
about questions, with the hash of the head before it, so that whoever knows one head, or when it was
stamped, knows that everything under it was fixed by then.

Trees are those of RFC 6962 sec. 2.1 (a leaf's hash begins with 0x00, a node's with 0x01). Different
from there: a leaf is hashed with a salt of its own, so that a decision can be deleted and its
leaf's hash, which the proofs of others need, tells nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from stillhouse.core.results import Result
from stillhouse.guard.keys import Keys, is_signed

LEAF, NODE = b"\x00", b"\x01"
SALT = 16  # bytes
START = "0" * 64  # what the first head has for the one before it

Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Head(Result):
    """What is hashed, signed and stamped. decisions: how many leaves are decisions about questions;
    leaves: all of them, tallies included; first, last: the times of the decisions (Unix seconds);
    log: the number of the log's last line; commitment: to the marking key."""

    kind: Literal["stillhouse guard head"] = "stillhouse guard head"
    number: Annotated[int, Field(ge=1)]
    time: float
    decisions: Annotated[int, Field(ge=0)]
    leaves: Annotated[int, Field(ge=0)]
    first: float | None
    last: float | None
    log: Annotated[int, Field(ge=0)]
    root: Digest
    previous: Digest
    commitment: Digest
    public_key: Digest

    @property
    def body(self) -> bytes:
        """What the hash and the signature are of."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def hash(self) -> str:
        """SHA-256 of the body, in hex: what is published, or stamped."""
        return hashlib.sha256(self.body).hexdigest()


class SealedHead(Result):
    """A head with its signature and what binds it. stamps: RFC 3161 responses (DER, in hex);
    published: where and when, in the owner's words."""

    head: Head
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    stamps: list[Hex] = Field(default_factory=list)
    published: list[str] = Field(default_factory=list)

    @property
    def line(self) -> bytes:
        """A line of JSON to be published: the head, its hash and its signature."""
        held = {"head": self.head.model_dump(mode="json"), "hash": self.head.hash}
        return canonical_json(held | {"signature": self.signature}) + b"\n"

    @property
    def is_signed(self) -> bool:
        return is_signed(self.head.body, self.signature, self.head.public_key)


class Proof(Result):
    """Where a leaf is: its head's number, its place there, its salt, and the hashes that lead from
    it to the root."""

    head: Annotated[int, Field(ge=1)]
    place: Annotated[int, Field(ge=0)]
    salt: Hex
    path: list[Digest]


class Tally(Result):
    """How many questions of a client, asked of a model and drawn with a key, were kept as evidence
    up to a head, in all: a leaf too, by which nobody can leave any of them out."""

    client: str
    model: str
    key: str
    kept: Annotated[int, Field(ge=0)]


class TallyProof(Result):
    tally: Tally
    proof: Proof


def canonical_json(value: object) -> bytes:
    """One text of a value, whoever writes it: keys in order, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def plain(decision: Mapping[str, Any]) -> dict[str, Any]:
    """A decision as JSON has it: bytes in hex; neither its row's number nor fields without a value,
    so that a field which later versions add changes no old leaf."""
    return {
        name: value.hex() if isinstance(value, bytes | memoryview) else value
        for name, value in decision.items()
        if value is not None and name != "id"
    }


def leaf(decision: Mapping[str, Any], salt: bytes) -> bytes:
    """The hash of a whole decision, or of a tally."""
    return hashlib.sha256(LEAF + salt + canonical_json(plain(decision))).digest()


class Tree:
    """A Merkle tree of leaves' hashes: its root, and each leaf's path to it."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves) or [hashlib.sha256(b"").digest()]]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            above = [node(*below[at : at + 2]) for at in range(0, len(below) - 1, 2)]
            self._levels.append(above + below[len(above) * 2 :])  # an odd one goes up as it is

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    def path(self, place: int) -> list[bytes]:
        """The hashes beside the way from a leaf to the root."""
        found = []
        for level in self._levels[:-1]:
            beside = place ^ 1
            if beside < len(level):
                found.append(level[beside])
            place //= 2
        return found


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE + left + right).digest()


def root_by(hashed: bytes, place: int, leaves: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a leaf's path leads to, in a tree of so many leaves; None for a path that fits
    no such tree."""
    if not 0 <= place < leaves:
        return None
    rest, last = list(path), leaves - 1
    while last > 0:
        if place % 2 or place < last:  # else it goes up as it is
            if not rest:
                return None
            beside = rest.pop(0)
            hashed = node(beside, hashed) if place % 2 else node(hashed, beside)
        place, last = place // 2, last // 2
    return None if rest else hashed


def is_under(hashed: bytes, proof: Proof, heads: Sequence[SealedHead]) -> bool:
    """Whether a proof leads from a leaf to the root of its head."""
    if proof.head > len(heads):
        return False
    head = heads[proof.head - 1].head
    path = [bytes.fromhex(each) for each in proof.path]
    found = root_by(hashed, proof.place, head.leaves, path)
    return found is not None and found.hex() == head.root


def is_chain(heads: Sequence[SealedHead]) -> bool:
    """Whether each head names the one before it, from the first on, and is signed."""
    before = START
    for number, each in enumerate(heads, start=1):
        if each.head.number != number or each.head.previous != before or not each.is_signed:
            return False
        before = each.head.hash
    return True


def signed(head: Head, keys: Keys) -> SealedHead:
    return SealedHead(head=head, signature=keys.sign(head.body))
