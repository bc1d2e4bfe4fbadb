"""A run's folder: atomic writes, and who it belongs to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from stillhouse.core.errors import UsageError
from stillhouse.core.private import make, mode_for, private_folder
from stillhouse.core.trouble import unwritten

CUT = "cut"  # in a run's folder: the cut model that it recovers


@contextlib.contextmanager
def writes(path: Path, *, kept: str = "", asked: bool = False) -> Iterator[None]:
    """Inside the block `path` is written: what the system refuses, through whatever library, is a
    RunError of one line. `kept`, `asked`: as `unwritten` has them."""
    try:
        yield
    except Exception as error:
        if (found := unwritten(path, error, kept=kept, asked=asked)) is None:
            raise
        raise found from error


@contextlib.contextmanager
def atomic(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes if it doesn't.
    `private`: only its owner can read it, from its first byte on; so it is in any folder that is
    closed to others. Raises RunError where it can't be written."""
    with writes(path, kept="; what was there is kept" if path.exists() else ""):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
        make(temporary, mode_for(path.parent, private=private))
        mode = temporary.stat().st_mode
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
                made_anew = os.fstat(file.fileno()).st_mode != mode
            if made_anew:  # by a library, with a mode of its own
                temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path, what: str) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes if it
    doesn't; if another run was first, its folder stands. Raises RunError, which says that `what`
    is not stored, where the system refuses it."""
    with writes(folder, kept=f" ({what})"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        try:
            yield temporary
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _differing(mine: object, theirs: object, name: str = "") -> Iterator[str]:
    """Dotted names of the settings that are not the same in both."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in {*mine, *theirs}:
            inside = f"{name}.{key}" if name else str(key)
            yield from _differing(mine.get(key), theirs.get(key), inside)
    elif mine != theirs:
        yield name


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    with atomic(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object, *, private: bool = False) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", private=private)


def write_yaml(path: Path, value: object) -> None:
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def claim(
    folder: Path, config: dict[str, object], content: dict[str, str] | None = None,
    *, private: bool = False,
) -> None:  # fmt: skip
    """Makes `folder` this run's, or finds that it already is. `private`: it is closed to others,
    and so is whatever is written in it. Raises UsageError as `check_free`."""
    new = check_free(folder, config, content)
    if new or private:
        with writes(folder, asked=True):
            if private:
                private_folder(folder)
            else:
                folder.mkdir(parents=True, exist_ok=True)
    if new:
        write_yaml(folder / "config.yaml", json.loads(json.dumps(config)))


def check_free(
    folder: Path, config: dict[str, object], content: dict[str, str] | None = None
) -> bool:
    """Whether `folder` is nobody's yet; if not, it is this run's.

    `content` are fingerprints of what the config names by path, such as its data. Raises
    UsageError if the folder holds another run or other files, or if that content has changed.
    """
    existing = folder / "config.yaml"
    with writes(folder, asked=True):
        there = existing.exists()
    if there:
        held = yaml.safe_load(existing.read_text(encoding="utf-8"))
        if held != json.loads(json.dumps(config)):
            flows = held.get("flow"), config.get("flow")
            if flows[0] != flows[1]:
                raise UsageError(f"{folder} holds a {flows[0]} run: give another --out")
            keys = sorted(_differing(held, json.loads(json.dumps(config))))
            raise UsageError(
                f"{folder} holds another run (its {', '.join(keys)} differ): "
                "give another --out, or delete the folder"
            )
        _same_content(folder, content or {})
        return False
    if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
        raise UsageError(f"{folder} exists and is not a run: give another --out")
    return True


def _same_content(folder: Path, content: dict[str, str]) -> None:
    path = folder / "manifest.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    changed = [k for k, v in content.items() if held.get("content", content).get(k) != v]
    if changed:
        raise UsageError(
            f"the {' and the '.join(changed)} changed since {folder} was started: "
            "give another --out, or delete the folder"
        )


def _is_foreign(path: Path) -> bool:
    """Whether a file is neither what a killed `atomic` or `atomic_folder` left nor where a run
    starts from."""
    left = path.name.startswith(".part-") or (path.name[0] == "." and path.suffix == ".part")
    return not (left or path.name == CUT)
