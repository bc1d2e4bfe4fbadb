"""Files that only their owner can read. Their mode is given when they are made: one that is set
afterwards leaves a moment in which anybody could open them.

Systems without such modes (Windows) ignore them: there a user's folders are closed by themselves.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PRIVATE, OPEN = 0o600, 0o666  # of which the user's umask takes more away
OTHERS, WORLD = 0o077, 0o007


def is_open(mode: int) -> bool:
    """Whether a file's mode lets the group or others in, on systems that have modes."""
    return os.name == "posix" and bool(mode & OTHERS)


def private_folder(folder: Path) -> Path:
    """The folder, made for its owner alone or closed to others. Raises OSError, also where it
    belongs to somebody else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_open(folder.stat().st_mode):
        folder.chmod(0o700)
    return folder


def mode_for(folder: Path, *, private: bool) -> int:
    """What a new file in a folder is made with: one in a folder that is closed to others is closed
    as well, for it may be moved."""
    return PRIVATE if private or not is_open(folder.stat().st_mode) else OPEN


def make(path: Path, mode: int = PRIVATE) -> None:
    """An empty file. Raises FileExistsError."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def close_to_world(path: Path) -> None:
    """Closes a file that everybody could read, as earlier versions made them. What only a group can
    read was somebody's choice, and stays."""
    with contextlib.suppress(OSError):  # it is not there, or not ours to close
        if os.name == "posix" and path.stat().st_mode & WORLD:
            path.chmod(PRIVATE)


def write_new(path: Path, text: str) -> None:
    """A private file, put in place whole. Raises FileExistsError where there is one, OSError."""
    part = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    make(part)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _place(part, path)
    finally:
        part.unlink(missing_ok=True)


def _place(part: Path, path: Path) -> None:
    """Gives a file its name, unless that is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        part.rename(path)
