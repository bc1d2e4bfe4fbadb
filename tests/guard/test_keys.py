"""The owner's secret: what is made of it, and where it never is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.private import write_new
from stillhouse.guard.keys import SECRET, Keys, commitment_to, is_signed, new_keys, read_keys


def test_a_file_gives_the_same_keys_again(tmp_path: Path) -> None:
    made = new_keys(tmp_path / "owner.key")
    assert read_keys(tmp_path / "owner.key").marking == made.marking
    assert (tmp_path / "owner.key").stat().st_mode & 0o777 == 0o600


def test_an_existing_key_is_not_overwritten(tmp_path: Path) -> None:
    new_keys(tmp_path / "owner.key")
    before = (tmp_path / "owner.key").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        new_keys(tmp_path / "owner.key")
    assert (tmp_path / "owner.key").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    made = new_keys(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"can be read by others.*chmod 600 {path}$"):
        read_keys(path)
    path.chmod(0o400)
    assert read_keys(path).id == made.id


def test_the_folder_of_a_new_key_is_the_owners(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys" / "owner.key")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_a_key_that_can_not_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="no space left"):
        new_keys(tmp_path / "owner.key")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_gives_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, bytes(32).hex())
    assert read_keys(None).marking == Keys(bytes(32)).marking


@pytest.mark.parametrize("held", ["", "abc", "zz" * 32, "00" * 31])
def test_what_is_no_key_is_refused(held: str, tmp_path: Path) -> None:
    write_new(tmp_path / "owner.key", held)
    with pytest.raises(UsageError, match="key"):
        read_keys(tmp_path / "owner.key")


def test_without_a_key_it_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET, raising=False)
    with pytest.raises(UsageError, match="stillhouse guard keys"):
        read_keys(None)
    with pytest.raises(UsageError, match="make one"):
        read_keys(Path("nowhere.key"))


def test_every_purpose_has_a_key_of_its_own(keys: Keys) -> None:
    assert len({keys.of(name) for name in ("marks", "log", "signatures", "x")}) == 4
    assert keys.of("marks") != Keys(bytes(32)).of("marks")


def test_the_commitment_by_hand(keys: Keys) -> None:
    by_hand = hashlib.sha256(b"stillhouse commitment" + keys.marking).hexdigest()
    assert keys.commitment == by_hand == commitment_to(keys.marking)
    assert keys.id == by_hand[:12]


def test_the_secret_is_not_shown(keys: Keys) -> None:
    shown = f"{keys!r} {keys} {keys.public} {keys.commitment}"
    assert bytes(range(32)).hex() not in shown
    assert keys.marking.hex() not in shown


def test_signatures(keys: Keys) -> None:
    signed = keys.sign(b"a verdict")
    assert is_signed(b"a verdict", signed, keys.public)
    assert not is_signed(b"a Verdict", signed, keys.public)
    assert not is_signed(b"a verdict", signed, Keys(bytes(32)).public)
    assert not is_signed(b"a verdict", "no hex", keys.public)


def test_a_log_calls_a_question_differently_for_each_client(keys: Keys) -> None:
    assert keys.query("ann", "x") != keys.query("bob", "x")
    assert keys.query("an", "nx") != keys.query("ann", "x")
    assert keys.query("ann", "x") == keys.query("ann", "x")
    assert Keys(bytes(32)).query("ann", "x") != keys.query("ann", "x")
