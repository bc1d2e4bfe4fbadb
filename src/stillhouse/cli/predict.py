"""The command that answers rows with a finished model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import console, options
from stillhouse.core.errors import UsageError


def predict(
    model: Annotated[
        str, typer.Argument(help="a model's or run's folder, a hub name, or an .onnx file")
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="a CSV, TSV, JSONL, Parquet or .txt file; - (or left out) is standard input: a "
            "text a line, or a JSON object a line"
        ),
    ] = "-",
    out: Annotated[
        str | None, typer.Option("--out", help="a .jsonl or .csv file (default: standard output)")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="jsonl or csv (default: as --out is named)")
    ] = None,
    top: Annotated[
        str, typer.Option("--top", help="how many labels have their probability told, or all")
    ] = "5",
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", min=1, help="rows together; an int8 file's answers depend on it"
        ),
    ] = 32,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=2, help="tokens of a row (default: as the model was trained)"
        ),
    ] = None,
    precision: options.Precision = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Answer rows with a finished model: every row with its answer and how likely it is.

    Example: stillhouse predict small new-reviews.csv --out answers.jsonl
    """
    from stillhouse.prediction.output import check_out, format_of

    if data == "-" and sys.stdin.isatty():
        raise UsageError("give a file of rows, or pipe them in (see --help for an example)")
    form = format_of(format, out)
    check_out(out, data)
    count = _top(top)
    from stillhouse.core.console import Terminal
    from stillhouse.data.columns import Columns
    from stillhouse.prediction.run import Counts, Predictor, write

    predictor = Predictor(
        model, top=count, batch_size=batch_size, max_length=max_length,
        precision=precision or "auto", trust_remote_code=trust_remote_code,
    )  # fmt: skip
    columns, counts, progress = Columns(text=text_column, pair=pair_column), Counts(), Terminal()
    try:
        with progress.stage("answering", 0, "rows") as advance:
            left = write(
                predictor, data, out, form, columns=columns, counts=counts, progress=advance
            )
    except BrokenPipeError:  # whoever reads has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    for note in predictor.notes(counts):
        progress.note(note)
    if left:
        progress.note(f"columns that the first row lacks are not in the CSV: {', '.join(left)}")
    if out not in (None, "-"):
        _told(Path(out or ""), counts, json=json)


def _told(out: Path, counts: object, *, json: bool) -> None:
    rows, failed, cut = (getattr(counts, name) for name in ("rows", "failed", "cut"))
    if json:
        found = {"out": str(out), "rows": rows, "answered": rows - failed, "cut": cut}
        console.print_json({**found, "errors": getattr(counts, "numbers", {})})
    else:
        console.say(f"{rows - failed:,} of {rows:,} rows have an answer in {out}")


def _top(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--top takes a number from 1, or all, got {text!r}")
    return int(text)
