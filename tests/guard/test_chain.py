"""Log heads: trees by hand, proofs, and chains that hold or don't."""

from __future__ import annotations

import hashlib
import json

import pytest

from stillhouse.guard.chain import (
    START,
    Head,
    Proof,
    Tree,
    canonical_json,
    is_chain,
    is_under,
    leaf,
    node,
    root_by,
    signed,
)
from stillhouse.guard.keys import Keys


def hashes(count: int) -> list[bytes]:
    return [hashlib.sha256(b"\x00" + bytes([i])).digest() for i in range(count)]


def slow_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 sec. 2.1, as it is written: the largest power of two below n goes left."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1
    while left * 2 < len(leaves):
        left *= 2
    return node(slow_root(leaves[:left]), slow_root(leaves[left:]))


@pytest.mark.parametrize("count", range(1, 20))
def test_a_root_is_rfc_6962s_and_every_leaf_leads_to_it(count: int) -> None:
    leaves = hashes(count)
    tree = Tree(leaves)
    assert tree.root == slow_root(leaves)
    for place, each in enumerate(leaves):
        path = tree.path(place)
        assert root_by(each, place, count, path) == tree.root
        assert root_by(leaves[place - 1], place, count, path) != tree.root or count == 1
        assert root_by(each, place, count, [*path, path[0] if path else each]) is None
        assert root_by(each, place + count, count, path) is None
        if path:
            assert root_by(each, place, count, path[:-1]) != tree.root
    if count > 1:
        assert root_by(leaves[0], 1, count, tree.path(0)) != tree.root


def test_a_root_of_nothing_is_the_hash_of_nothing() -> None:
    assert Tree([]).root.hex() == hashlib.sha256(b"").hexdigest()


def test_a_leaf_is_the_whole_decision() -> None:
    """By hand; a field that is there later, without a value, changes nothing; any value does."""
    row = {"id": 7, "text": "ü", "query": b"\x01\xff", "rate": 0.5, "pair": None}
    salt = bytes(16)
    by_hand = b"\x00" + salt + '{"query":"01ff","rate":0.5,"text":"ü"}'.encode()
    assert leaf(row, salt) == hashlib.sha256(by_hand).digest()
    assert leaf(row | {"id": 8, "read": None}, salt) == leaf(row, salt)
    assert leaf(row | {"read": b"\x01"}, salt) != leaf(row, salt)
    assert leaf(row, bytes(15) + b"\x01") != leaf(row, salt)


def test_json_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def head(number: int, previous: str, keys: Keys, leaves: list[bytes]) -> Head:
    return Head(
        number=number, time=1.0 * number, decisions=len(leaves), leaves=len(leaves), first=0.0,
        last=1.0, log=3, root=Tree(leaves).root.hex(), previous=previous,
        commitment=keys.commitment, public_key=keys.public,
    )  # fmt: skip


def test_a_chain_is_whole_in_order_and_signed() -> None:
    keys = Keys(bytes(32))
    first = signed(head(1, START, keys, hashes(3)), keys)
    second = signed(head(2, first.head.hash, keys, hashes(2)), keys)
    assert is_chain([first, second])
    assert is_chain([])
    assert not is_chain([second])
    assert not is_chain([second, first])
    other = signed(first.head.model_copy(update={"time": 5.0}), keys)
    assert not is_chain([other, second])
    unsigned = first.model_copy(update={"signature": "00" * 64})
    assert not is_chain([unsigned, second])


def test_a_proof_is_of_one_head() -> None:
    keys, leaves = Keys(bytes(32)), hashes(5)
    first = signed(head(1, START, keys, leaves), keys)
    second = signed(head(2, first.head.hash, keys, leaves[:4]), keys)
    path = [each.hex() for each in Tree(leaves).path(2)]
    proof = Proof(head=1, place=2, salt="", path=path)
    assert is_under(leaves[2], proof, [first, second])
    assert not is_under(leaves[3], proof, [first, second])
    assert not is_under(leaves[2], proof.model_copy(update={"head": 2}), [first, second])
    assert not is_under(leaves[2], proof.model_copy(update={"head": 3}), [first, second])


def test_a_published_line_tells_the_head_and_its_hash() -> None:
    keys = Keys(bytes(32))
    found = signed(head(1, START, keys, hashes(1)), keys)
    held = json.loads(found.line)
    assert held["hash"] == Head.model_validate(held["head"]).hash == found.head.hash
    assert found.line.count(b"\n") == 1
