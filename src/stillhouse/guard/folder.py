"""A verdict's folder: its files, and the owner's signature of a list of them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillhouse.core.errors import UsageError
from stillhouse.core.rundir import write_text
from stillhouse.guard.keys import Keys, is_signed
from stillhouse.guard.snapshot import digest, written

FILES = ("config.yaml", "manifest.json", "snapshot.json", "heads.json", "answers.json",
         "record.json", "record.sig", "report.html")  # fmt: skip
BLIND = "blind.json"  # a third party's answers, where there are any
LIST, SIGNATURE = "files.json", "files.sig"


def sign_files(folder: Path, keys: Keys) -> None:
    """Writes the list of the folder's files with their SHA-256, and the signature of that list."""
    held = [name for name in (*FILES, BLIND) if (folder / name).is_file()]
    text = written({name: digest((folder / name).read_bytes()) for name in held})
    write_text(folder / LIST, text, private=True)
    write_text(folder / SIGNATURE, keys.sign(text.encode()) + "\n", private=True)


def check_files(folder: Path, public_key: str) -> list[tuple[str, bool]]:
    """Whether the folder has the files of the signed list, as they were, and no others."""
    try:
        body = (folder / LIST).read_bytes()
        signature = (folder / SIGNATURE).read_text(encoding="ascii").strip()
        listed = strict_json(body.decode())
        whole = isinstance(listed, dict) and set(FILES) <= listed.keys() <= {*FILES, BLIND}
    except (OSError, ValueError, RecursionError):
        return [("the list of files can be read", False)]
    there = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    found = [
        ("the list of files is signed by the public key", is_signed(body, signature, public_key)),
        ("the list names each file of a verdict, and no other", whole),
    ]
    if not whole:
        return found
    for name, known in listed.items():
        path = there.pop(name, None)
        try:
            same = path is not None and path.is_file() and digest(path.read_bytes()) == known
        except OSError:
            same = False
        found.append((f"{name} is as it was signed", same))
    others = sorted(there.keys() - {LIST, SIGNATURE})
    shown = f" ({', '.join(others[:3])})" if others else ""
    return [*found, (f"there is no file that the list doesn't name{shown}", not others)]


def strict_json(text: str) -> Any:
    """JSON without NaN, infinities or a key that is there twice. Raises ValueError."""

    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(text, object_pairs_hook=whole, parse_constant=refuse)


def read_json(path: Path) -> Any:
    """Raises ValueError, OSError, RecursionError."""
    return strict_json(path.read_text(encoding="utf-8"))


def needs(folder: Path) -> None:
    """Raises UsageError where there is no verdict at all."""
    if not (folder / "record.json").is_file():
        raise UsageError(f"{folder} is no finished verification: it has no record.json")
