"""Commands about lottery tickets: find, transfer, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli import console, options
from stillhouse.cli.runs import finish

if TYPE_CHECKING:
    from stillhouse.core.ticket_results import TicketsRecord, TransferRecord
    from stillhouse.tickets.config import TicketsConfig

app = typer.Typer(
    help="Sparse subnetworks that train as well as the whole.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def find(
    out: options.Out,
    model: Annotated[
        str | None, typer.Option("--model", help="a pretrained model: a folder or a hub name")
    ] = None,
    data: options.Data = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="share of the prunable weights that go")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="in how many rounds (1: one shot)")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option("--score", help="magnitude, movement, gradient, fisher or random"),
    ] = None,
    rewind: Annotated[
        str | None,
        typer.Option("--rewind", help="the step whose weights survivors get back, or none"),
    ] = None,
    seeds: options.Seeds = None,
    task: options.Task = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Find a ticket: train, prune, rewind, repeat; beside random masks and fresh weights.

    Example: stillhouse tickets find --model all-MiniLM-L6-v2 --data reviews.csv --sparsity 0.6 --out ticket
    """  # noqa: E501
    from stillhouse.core.settings import parse
    from stillhouse.tickets.config import TicketsConfig

    values = options.settings(
        config,
        "tickets",
        {
            "model": model,
            **options.columns(data, text_column, pair_column, label_column),
            "task": task,
            "prune.sparsity": sparsity,
            "prune.rounds": rounds,
            "prune.score": score,
            "prune.rewind": rewind,
            "evaluation.seeds": list(range(seeds)) if seeds else None,
            "cache": cache,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        TicketsConfig,
    )
    options.required(values, "model", "data.path")
    checked = parse(TicketsConfig, values)
    finish_search(checked, out, json=json)


@app.command()
def transfer(
    runs: Annotated[list[str], typer.Argument(help="finished searches, at least two")],
    out: options.Out,
    seeds: options.Seeds = None,
    json: options.Json = False,
) -> None:
    """Train every search's ticket on every other's task.

    Example: stillhouse tickets transfer sst2-ticket mrpc-ticket wiki-ticket --out matrix
    """
    from stillhouse.core.settings import parse
    from stillhouse.tickets.config import TransferConfig

    shared = list(range(seeds)) if seeds else None
    checked = parse(TransferConfig, {"runs": runs, "seeds": shared})
    from stillhouse.tickets.runs import run_transfer

    record = run_transfer(checked, out)
    if json:
        console.print_json(record.model_dump(mode="json", by_alias=True))
        return
    _matrix(record)
    console.say(f"\nReport: {out / 'report.html'}")


@app.command()
def remove(
    out: options.Out,
    model: Annotated[
        str | None, typer.Option("--model", help="a fine-tuned model: a folder or a hub name")
    ] = None,
    data: options.Data = None,
    speedup: Annotated[
        float | None, typer.Option("--speedup", help="how many times as fast it is to be")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option("--parameters", help="the share of all parameters that stays")
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="so many layers stay")] = None,
    heads: Annotated[int | None, typer.Option("--heads", help="so many heads a layer")] = None,
    neurons: Annotated[
        int | None, typer.Option("--neurons", help="so many feed-forward neurons a layer")
    ] = None,
    what: Annotated[
        str | None, typer.Option("--what", help="what may go: layers,heads,neurons")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="where it is timed: torch, onnx, onnx-int8")
    ] = None,
    recover: Annotated[
        bool, typer.Option("--recover/--no-recover", help="distil from the whole model afterwards")
    ] = True,
    seeds: options.Seeds = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.SetOfRemoval = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Cut out layers, heads and neurons until a target is met; then distil from the whole model.

    Settings of the distillation go in as --set recover.training.epochs=2.
    Example: stillhouse tickets remove --model my-teacher --data reviews.csv --speedup 2 --out fast
    """
    from stillhouse.tickets.config import RemoveConfig

    values = options.settings(
        config,
        "remove",
        {
            "model": model,
            **options.columns(data, text_column, pair_column, label_column),
            "speedup": speedup,
            "parameters": parameters,
            "layers": layers,
            "heads": heads,
            "neurons": neurons,
            "what": what.split(",") if what else None,
            "runtime": runtime,
            "recover.evaluation.seeds": list(range(seeds)) if seeds else None,
            "cache": cache,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        RemoveConfig,
    )
    options.required(values, "model", "data.path")
    finish_removal(values, out, recover=recover, json=json)


def finish_search(config: TicketsConfig, out: Path, *, json: bool) -> None:
    """Searches, and prints what was found."""
    from stillhouse.tickets.runs import run_tickets

    run = run_tickets(config, out)
    if json:
        console.print_json(run.record.model_dump(mode="json", by_alias=True))
        return
    _levels(run.record)
    console.say(f"\nReport: {run.out / 'report.html'}")


def finish_removal(values: dict[str, Any], out: Path, *, recover: bool, json: bool) -> None:
    """Removes by settings that may have a section `recover`, and prints what came of it."""
    from stillhouse.core.rundir import CUT
    from stillhouse.core.settings import parse
    from stillhouse.tickets.config import RemoveConfig

    settings = values.pop("recover", None) or {}
    checked = parse(RemoveConfig, values)
    from stillhouse.removal import run_removal, sentence

    found = run_removal(checked, out, recover=settings if recover else None)
    if json:
        record = found.run and found.run.record.model_dump(mode="json", by_alias=True)
        console.print_json({"removal": found.removed.model_dump(mode="json"), "record": record})
        return
    if found.run is not None:
        finish(found.run, json=False)
        return
    console.say(sentence(found.removed))
    told = f"The cut model: {out / CUT} (not trained since; stillhouse evaluate scores it)"
    console.say(told)


def _levels(record: TicketsRecord) -> None:
    from stillhouse.core.units import points, unit
    from stillhouse.core.verdicts import in_words

    rows, metric = [], record.metric
    for each in record.levels:
        gain = ""
        if each.gain is not None:
            value, low, high = (points(x, metric) for x in (each.gain.value, *each.gain.interval))
            gain = f"{value} ({low} to {high})"
            gain += f", {in_words(each.verdict, each.gain)}" if each.verdict else ""
        early = sum(each.early_steps) / len(each.early_steps) if each.early_steps else None
        rows.append(
            [
                each.kind,
                f"{100 * each.remaining:.1f} %",
                f"{each.score:.4f}",
                gain,
                console.number(early, ",.0f"),
            ]
        )
    columns = ("model", "weights", metric, f"{unit(metric)} (95 %)", "stop at")
    console.table(columns, rows)
    console.say(f"\n{record.sentence}")


def _matrix(record: TransferRecord) -> None:
    """One row a source, one column a target: the score, and points against the target's own."""
    cells = {(cell.source, cell.target): cell for cell in record.cells}
    rows = [
        [
            source,
            *(
                f"{cell.score:.3f}" + (f" ({100 * cell.gain.value:+.1f})" if cell.gain else "")
                for cell in (cells[source, target] for target in record.names)
            ),
        ]
        for source in record.names
    ]
    rows.append(["dense", *(f"{score:.3f}" for score in record.dense)])
    console.table(["ticket of", *(f"on {name}" for name in record.names)], rows)
    console.say(f"\n{record.sentence}")
