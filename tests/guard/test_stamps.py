"""Time stamps by RFC 3161: what they are of, who made them, and whom that binds."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from pathlib import Path

import pytest
from authority import OPENSSL, Authority, authority, needed, serving

from stillhouse.core.errors import RunError, UsageError
from stillhouse.guard import stamps
from stillhouse.guard.chain import START, Head, SealedHead, signed
from stillhouse.guard.keys import Keys

pytestmark = needed


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tsa"))


@pytest.fixture
def chain() -> list[SealedHead]:
    keys, found, before = Keys(bytes(32)), [], START
    for number in (1, 2):
        head = Head(
            number=number, time=5.0, decisions=0, leaves=0, first=None, last=None, log=0,
            root="00" * 32, previous=before, commitment=keys.commitment, public_key=keys.public,
        )  # fmt: skip
        found.append(signed(head, keys))
        before = head.hash
    return found


def test_a_request_is_of_the_heads_hash(chain: list[SealedHead], tmp_path: Path) -> None:
    """As another program reads it."""
    (tmp_path / "q.tsq").write_bytes(stamps.request(chain[1].head))
    assert OPENSSL is not None
    text = subprocess.run(
        [OPENSSL, "ts", "-query", "-in", tmp_path / "q.tsq", "-text"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    dumped = re.findall(r"^ +00[01]0 - ((?:[0-9a-f]{2}[ -]){16})", text, re.MULTILINE)
    assert re.sub(r"[ -]", "", "".join(dumped)) == chain[1].head.hash
    assert "sha256" in text
    assert "Certificate required: yes" in text


def test_a_stamp_tells_which_head_when_and_by_whom(chain: list[SealedHead], tsa: Authority) -> None:
    before = time.time()
    response = tsa.stamp(stamps.request(chain[1].head))
    found = stamps.stamp_of(response, chain)
    assert found.head == 2
    assert before - 1 <= found.time <= time.time()
    assert found.authority == "CN=Tiny Time"
    assert not found.public  # anybody can make such an authority
    assert stamps.stamp_of(response, chain, roots=[tsa.root]).public


def test_only_a_trusted_root_makes_a_stamp_public(
    chain: list[SealedHead], tsa: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority of the same name is another one."""
    response = tsa.stamp(stamps.request(chain[0].head))
    other = authority(tmp_path / "other")
    assert not stamps.stamp_of(response, chain, roots=[other.root]).public
    monkeypatch.setattr(stamps, "public_roots", lambda: tuple(tsa.roots))
    assert stamps.stamp_of(response, chain).public


def test_public_roots_are_there() -> None:
    assert len(stamps.public_roots()) > 50


def test_a_stamp_of_something_else_is_refused(chain: list[SealedHead], tsa: Authority) -> None:
    response = tsa.stamp(stamps.request(chain[1].head))
    with pytest.raises(UsageError, match="none of these log heads"):
        stamps.stamp_of(response, chain[:1])
    held = chain[0].model_copy(update={"stamps": [response.hex()]})
    with pytest.raises(UsageError, match="none of these log heads"):
        stamps.read_stamps([held, chain[1]])


def test_any_changed_byte_is_no_stamp(chain: list[SealedHead], tsa: Authority) -> None:
    """A refusal of one line, or a stamp that no root vouches for; never the same stamp."""
    response = tsa.stamp(stamps.request(chain[0].head))
    good = stamps.stamp_of(response, chain, roots=[tsa.root])
    for place in range(0, len(response), 7):
        changed = bytearray(response)
        changed[place] ^= 1
        with contextlib.suppress(UsageError):
            found = stamps.stamp_of(bytes(changed), chain, roots=[tsa.root])
            assert not found.public or found == good  # of what is not signed, the certificates


@pytest.mark.parametrize("wrong", [b"", b"\x30\x03\x02\x01\x00", b"no stamp", b"\x30" * 5000])
def test_what_is_no_response(wrong: bytes, chain: list[SealedHead]) -> None:
    with pytest.raises(UsageError):
        stamps.stamp_of(wrong, chain)


def test_a_refusal_is_told(chain: list[SealedHead], tsa: Authority) -> None:
    refused = tsa.stamp(b"no request")
    with pytest.raises(UsageError, match="gave no time stamp"):
        stamps.stamp_of(refused, chain)


def test_an_authority_is_asked_at_its_address(chain: list[SealedHead], tsa: Authority) -> None:
    with serving(tsa) as url:
        response = stamps.asked_of(url, chain[0].head)
    assert stamps.stamp_of(response, chain).head == 1
    for wrong in (url, "no address", "http://["):
        with pytest.raises(RunError, match="gives no time stamp"):
            stamps.asked_of(wrong, chain[0].head)


def test_roots_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("x")
    for path in (tmp_path / "x.pem", tmp_path / "nowhere.pem"):
        with pytest.raises(UsageError):
            stamps.read_roots(path)
