"""The command's entry: user errors are one line on standard error.

Exit codes: 0 done, 1 the run failed, 2 the call was wrong, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from stillhouse.cli import (
    audit,
    clients,
    guard,
    models,
    new,
    predict,
    recipes,
    runs,
    serve,
    tickets,
    verdicts,
)
from stillhouse.core import trouble
from stillhouse.core.errors import StillhouseError

app = typer.Typer(
    name="stillhouse",
    help="Make big models small, and show whether it helped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for command in (
    runs.demo,
    runs.distill,
    runs.finetune,
    runs.label,
    new.new,
    models.augment,
    predict.predict,
    models.evaluate,
    models.bench,
    models.export,
    models.report,
    models.selfcheck,
    audit.audit,
    serve.serve,
    verdicts.verify,
):
    app.command()(command)
app.add_typer(tickets.app, name="tickets")
app.add_typer(clients.app, name="clients")
app.add_typer(guard.app, name="guard")
app.add_typer(recipes.app, name="recipes")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="print the version"),
) -> None:
    if version:
        from stillhouse import __version__

        print(__version__)
        raise typer.Exit


INTERRUPTED = 130  # as shells have it
STOPPED = "stopped; the same command goes on from what was kept"


def fail(message: str, code: int) -> int:
    line = " ".join(message.split())  # what is quoted in it may hold anything, such as codes that
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)
    print(f"stillhouse: {shown}", file=sys.stderr)  # move a terminal's cursor
    return code


def _misread(error: Exception, message: str) -> int:
    """What the parser of the command line says; of a command alone, its help."""
    code = getattr(error, "exit_code", 2)
    if type(error).__name__ != "NoArgsIsHelpError":
        return fail(message, code)
    print(message, file=sys.stderr)
    return code


def _at_home(word: str) -> str:
    """`--out=~/x` as `--out=/home/me/x`: shells expand ~/ only where a word begins with it."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{Path(value).expanduser()}" if value.startswith("~/") else word


def _forget_output() -> None:
    """Drops what standard output can't take: the interpreter would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> int:
    """Runs the command line; the exit code."""
    try:
        code = app([_at_home(word) for word in sys.argv[1:]], standalone_mode=False) or 0
        sys.stdout.flush()  # or what can't be written is seen at the interpreter's end only
        return fail(STOPPED, code) if code == INTERRUPTED else code
    except StillhouseError as error:
        return fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return fail(STOPPED, INTERRUPTED)
    except BrokenPipeError:
        _forget_output()
        return 1  # without a word, as any command before `head`
    except Exception as error:
        if (format_message := getattr(error, "format_message", None)) is not None:
            return _misread(error, format_message())
        if (known := trouble.told(error)) is None:
            raise
        _forget_output()
        return fail(str(known), known.exit_code)


if __name__ == "__main__":
    sys.exit(main())
