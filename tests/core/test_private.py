"""Files that only their owner can read, from the moment they are made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.core.private import close_to_world, is_open, write_new
from stillhouse.core.rundir import atomic, claim, write_json, write_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files have no such modes")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path, umask: None) -> Path:
    """A folder that others may look into."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    return folder


def test_a_private_file_is_closed_while_it_is_written(shared: Path) -> None:
    with atomic(shared / "a", private=True) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("secret")
    assert mode(shared / "a") == 0o600


def test_other_files_are_as_the_users_umask_has_them(shared: Path) -> None:
    write_text(shared / "a", "x")
    os.umask(0o077)
    write_text(shared / "b", "x")
    assert (mode(shared / "a"), mode(shared / "b")) == (0o644, 0o600)


def test_a_file_that_a_library_makes_anew_has_the_right_mode(shared: Path) -> None:
    with atomic(shared / "a") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert mode(shared / "a") == 0o644


def test_files_of_a_closed_folder_are_closed(shared: Path) -> None:
    (shared / "closed").mkdir(mode=0o700)
    write_json(shared / "closed" / "a.json", {})
    assert mode(shared / "closed" / "a.json") == 0o600


@pytest.mark.parametrize("there", [False, True])
def test_a_private_run_has_a_folder_of_its_own(shared: Path, *, there: bool) -> None:
    if there:
        (shared / "run").mkdir(mode=0o755)
    for _ in range(2):  # begun, and gone on with
        claim(shared / "run", {"flow": "x"}, private=True)
        assert mode(shared / "run") == 0o700
        assert mode(shared / "run" / "config.yaml") == 0o600


def test_a_new_file_is_whole_or_not_there(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_new(shared / "a", "first")
    with pytest.raises(FileExistsError):
        write_new(shared / "a", "second")
    assert ((shared / "a").read_text(), mode(shared / "a")) == ("first", 0o600)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_new(shared / "b", "third")
    monkeypatch.setattr(os, "link", fail)  # as where a file system has no links
    monkeypatch.setattr(os, "fsync", lambda file: None)
    write_new(shared / "c", "fourth")
    with pytest.raises(FileExistsError):
        write_new(shared / "c", "fifth")
    assert sorted(each.name for each in shared.iterdir()) == ["a", "c"]
    assert (shared / "c").read_text() == "fourth"


@pytest.mark.parametrize(
    ("before", "after"), [(0o644, 0o600), (0o666, 0o600), (0o640, 0o640), (0o600, 0o600)]
)
def test_what_everybody_could_read_is_closed(shared: Path, before: int, after: int) -> None:
    (shared / "a").touch()
    (shared / "a").chmod(before)
    close_to_world(shared / "a")
    assert mode(shared / "a") == after
    close_to_world(shared / "nothing")


@pytest.mark.parametrize(("mode", "open_"), [(0o600, False), (0o700, False), (0o640, True),
                                             (0o604, True), (0o610, True)])  # fmt: skip
def test_what_is_open(mode: int, *, open_: bool) -> None:
    assert is_open(mode) is open_
