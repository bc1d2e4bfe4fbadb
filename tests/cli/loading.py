"""Calls commands in this process, one after another, and prints what each of them loaded.

Standard input: a JSON list of calls, each a list of words; none: `--help` of every command there
is. Standard output: a JSON list of [words, exit code, modules loaded first by it, what it said].
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator

from typer.main import get_command

from stillhouse.cli.main import app, main


def commands(command: object, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of a command and of all below it."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


def run(words: list[str]) -> tuple[int, str]:
    """Exit code, and what was written."""
    sys.argv = ["stillhouse", *words]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, said.getvalue()


def loaded() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}


if __name__ == "__main__":
    calls = json.loads(sys.stdin.read() or "[]")
    calls = calls or [[*words, "--help"] for words in commands(get_command(app))]
    found, before = [], set[str]()
    for words in calls:
        code, said = run(words)
        found.append([words, code, sorted(loaded() - before), said])
        before = loaded()
    print(json.dumps(found))
