"""How rows are named: by their file and line, or by what held them in memory and their number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MEMORY = "memory"  # the store's folder of rows that were given from memory
MADE = re.compile(r"(.+)-[0-9a-f]{16}")  # names in it: what held the rows, and their content
HELD = {"list": "the rows", "tuple": "the rows"}
NUMBERED = (".parquet",)  # files without lines


@dataclass(frozen=True)
class Place:
    """What rows come from, and what a row in it is called by."""

    name: str
    unit: str = "line"


def place_of(path: str | Path) -> Place:
    """Of a file, a folder or a hub name as settings hold it."""
    path, inside = Path(path), ""
    made, parent = MADE.fullmatch(path.stem), path.parent
    if made is None and (made := MADE.fullmatch(parent.name)):  # a split of several
        parent, inside = parent.parent, f"{path.stem} rows of "
    if made is not None and parent.name == MEMORY:
        return Place(inside + HELD.get(made.group(1), f"the {made.group(1)}"), "row")
    return Place(str(path), "row" if path.suffix.lower() in NUMBERED else "line")


def spoken(path: str) -> str:
    """A setting's path in a sentence."""
    held = place_of(path)
    return path if held.name == str(Path(path)) else held.name
