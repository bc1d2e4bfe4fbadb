"""Commands about models and runs that exist: evaluate, bench, export, report, selfcheck."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import console, options
from stillhouse.core.errors import UsageError, unknown


def evaluate(
    model: Annotated[
        str, typer.Option("--model", help="a model's folder, a run's, a hub name, or an .onnx file")
    ],
    data: Annotated[
        str, typer.Option("--data", help="as for distill; its reported rows are scored")
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="another model to compare with")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option("--margin", min=0, help="points that count as no difference (left out: 1)"),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="a JSONL file for the rows with their answers"),
    ] = None,
    precision: options.Precision = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    label_map: options.LabelMap = None,
    cache: options.Cache = None,
    set_: options.SetOfData = None,
    json: options.Json = False,
) -> None:
    """Score a model on a data set, with an interval; or compare two.

    Example: stillhouse evaluate --model small --data reviews.csv --against my-teacher
    """
    settings = {"path": data, "text": text_column, "pair": pair_column, "label": label_column}
    if label_map:
        settings["label_map"] = options.pairs(label_map, "--label-map")  # pyright: ignore
    settings = options.of_data(settings, set_)
    from stillhouse import api
    from stillhouse.core.units import points, unit

    found = api.evaluate(
        model,
        settings,
        against=against,
        precision=precision or "auto",
        margin=margin,
        predictions=predictions,
        cache=cache,
    )
    if json:
        console.print_json(found)
        return
    other, batches = found.pop("against", None), found.pop("batches", None)
    low, high = found["interval"]
    for name, value in found.items():
        if isinstance(value, float):
            more = f"  ({low:.4f} to {high:.4f})" if name == found["metric"] else ""
            console.say(f"{name:<18} {value:.4f}{more}")
    if batches:
        from stillhouse.core.units import batches_told

        console.say(f"\n{batches_told(**batches, metric=found['metric'])}")
    if other:
        metric = found["metric"]
        gain, low, high = (points(x, metric, 2) for x in (other["gain"], *other["interval"]))
        word = f"{other['verdict']}, {other['caveat']}"
        if other["not_comparable"]:
            word = f"{other['verdict']}: {other['not_comparable']}"
        console.say(
            f"\nagainst {other['model']}, {word}: {gain} {unit(metric)} ({low} to {high}, "
            f"p = {other['p_value']:.3g}); same answer on {100 * other['agreement']:.1f} % of rows"
        )


def augment(
    data: Annotated[str, typer.Option("--data", help="as for distill; its training rows vary")],
    teacher: Annotated[
        str, typer.Option("--teacher", help="whose embeddings tell which words are near")
    ],
    out: Annotated[Path, typer.Option("--out", help="the JSONL file to write")],
    masked_lm: Annotated[
        str | None, typer.Option("--masked-lm", help="a masked language model that guesses words")
    ] = None,
    vectors: Annotated[
        str | None, typer.Option("--vectors", help="word vectors as text (GloVe's form)")
    ] = None,
    copies: Annotated[int, typer.Option("--copies", min=1, help="variants a row")] = 20,
    share: Annotated[float, typer.Option("--share", help="of the words that are replaced")] = 0.4,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="words to draw from")] = 15,
    precision: options.Precision = None,
    seed: Annotated[int, typer.Option("--seed", help="the seed")] = 0,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Write variants of the training rows, for the teacher to answer (TinyBERT's augmentation).

    Example: stillhouse augment --data reviews.csv --teacher my-teacher --out variants.jsonl
    """
    from stillhouse import api

    columns = {"path": data, "text": text_column, "pair": pair_column, "label": label_column}
    rows = api.augment(
        columns,
        teacher=teacher,
        out=out,
        cache=cache,
        model=masked_lm,
        vectors=vectors,
        copies=copies,
        share=share,
        candidates=candidates,
        precision=precision or "auto",
        seed=seed,
    )
    if json:
        console.print_json({"out": str(out), "rows": rows})
    else:
        console.say(
            f"{rows:,} variants in {out}: give them as --unlabelled, with this data's settings"
        )


def bench(
    models: Annotated[list[str], typer.Argument(help="model folders, run folders or hub names")],
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="tokens a row")] = 32,
    json: options.Json = False,
) -> None:
    """Measure latency, throughput, memory and size of models, in turns.

    Example: stillhouse bench my-teacher small --tokens 64
    """
    from stillhouse import api

    found = api.bench(models, tokens=tokens)
    if json:
        console.print_json({name: cost.model_dump() for name, cost in found.items()})
    else:
        console.efficiency_table(found)


def export(
    model: Annotated[str, typer.Argument(help="a model's or run's folder, or a hub name")],
    out: Annotated[Path, typer.Option("--out", help="where the files go")],
    to: Annotated[str, typer.Option("--to", help="the format: onnx")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="also with int8 weights")] = False,
    json: options.Json = False,
) -> None:
    """Write a model as ONNX, checked against the original.

    Example: stillhouse export small --to onnx --int8 --out small-onnx
    """
    if to != "onnx":
        raise UsageError(unknown("format", to, ["onnx"]))
    from stillhouse import api

    found = api.to_onnx(model, out, int8=int8)
    if json:
        console.print_json(found)
        return
    console.say(f"{found['onnx']}: scores within {found['max_difference']:.1g} of PyTorch's")
    if "int8" in found:
        console.say(f"{found['int8']}: within {found['int8_max_difference']:.2g}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders; several are put side by side")],
    out: Annotated[Path, typer.Option("--out", help="the page's file")] = Path("report.html"),
    json: options.Json = False,
) -> None:
    """Write one self-contained page about one or several runs.

    Example: stillhouse report small smaller --out comparison.html
    """
    from stillhouse.report import render

    path = render(runs, out)
    if json:
        console.print_json({"report": str(path)})
    else:
        console.say(str(path))


def selfcheck(
    teacher: Annotated[str | None, typer.Option("--teacher", help="a fine-tuned model")] = None,
    data: options.Data = None,
    student: options.Student = None,
    task: options.Task = None,
    method: options.Method = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    label_map: options.LabelMap = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.SetOfAnswers = None,
    json: options.Json = False,
) -> None:
    """Check your own teacher, student and rows for failures that would train on in silence.

    Example: stillhouse selfcheck --teacher my-teacher --data reviews.csv --student layers=3
    """
    from stillhouse.core.config import DistillConfig
    from stillhouse.core.settings import parse

    values = options.settings(
        config,
        "distill",
        {
            "teacher": teacher,
            **options.columns(data, text_column, pair_column, label_column),
            "task": task,
            "cache": cache,
            "data.label_map": options.pairs(label_map, "--label-map") if label_map else None,
            "student": options.student(student) if student else None,
            **options.of_method(method),
        },
        set_,
        DistillConfig,
    )
    options.required(values, "teacher", "data.path")
    checked = parse(DistillConfig, values)
    from stillhouse.selfcheck import selfcheck as run

    found = run(checked)
    if json:
        console.print_json([vars(check) for check in found])
    else:
        for check in found:
            console.say(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
    if not all(check.passed for check in found):
        raise typer.Exit(1)
