"""Commands that make a run: distill, finetune, label, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli import console, options


def distill(
    out: options.Out,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="a fine-tuned model: a folder or a hub name")
    ] = None,
    data: options.Data = None,
    student: options.Student = None,
    unlabelled: options.Unlabelled = None,
    method: options.Method = None,
    corpus: options.Corpus = None,
    seeds: options.Seeds = None,
    task: options.Task = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    label_map: options.LabelMap = None,
    baseline: Annotated[
        bool,
        typer.Option("--baseline/--no-baseline", help="also train the student without the teacher"),
    ] = True,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="also train it without each term of the objective")
    ] = False,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Distil a teacher into a small student, beside the same student trained without it.

    Example: stillhouse distill --teacher my-teacher --data reviews.csv --student layers=3 --out small
    """  # noqa: E501
    from stillhouse.core.config import DistillConfig
    from stillhouse.core.settings import parse

    values = options.settings(
        config,
        "distill",
        {
            "teacher": teacher,
            **options.columns(data, text_column, pair_column, label_column),
            "data.unlabelled": unlabelled,
            "task": task,
            "cache": cache,
            "data.label_map": options.pairs(label_map, "--label-map") if label_map else None,
            "student": options.student(student) if student else None,
            "evaluation.seeds": list(range(seeds)) if seeds else None,
            "evaluation.baseline": None if baseline else False,
            "evaluation.ablation": ablation or None,
            **options.of_method(method, corpus),
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        DistillConfig,
    )
    options.required(values, "teacher", "data.path")
    checked = parse(DistillConfig, values)
    from stillhouse.runs import run_distill

    finish(run_distill(checked, out), json=json)


def finish(run: Any, *, json: bool) -> None:
    """Prints a run's result."""
    if json:
        console.print_json(run.record.model_dump(mode="json", by_alias=True))
        return
    console.record_table(run.record)
    console.say(f"\nReport: {run.out / 'report.html'}")


def finetune(
    out: Annotated[Path, typer.Option("--out", help="the new model's folder")],
    model: Annotated[
        str | None, typer.Option("--model", help="a pretrained model: a folder or a hub name")
    ] = None,
    data: options.Data = None,
    task: options.Task = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    seed: Annotated[int | None, typer.Option("--seed", help="the seed")] = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Fine-tune a pretrained model on labelled rows: a teacher, where there is none.

    Example: stillhouse finetune --model all-MiniLM-L6-v2 --data reviews.csv --out my-teacher
    """
    from stillhouse.core.config import FinetuneConfig
    from stillhouse.core.settings import parse

    values = options.settings(
        config,
        "finetune",
        {
            "model": model,
            **options.columns(data, text_column, pair_column, label_column),
            "task": task,
            "seed": seed,
            "cache": cache,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        FinetuneConfig,
    )
    options.required(values, "model", "data.path")
    checked = parse(FinetuneConfig, values)
    from stillhouse.runs import run_finetune

    finish(run_finetune(checked, out), json=json)


def label(
    out: Annotated[
        str, typer.Option("--out", help="the cache's folder; give it to distill as --cache")
    ],
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="a fine-tuned model: a folder or a hub name")
    ] = None,
    data: options.Data = None,
    unlabelled: options.Unlabelled = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    label_map: options.LabelMap = None,
    config: options.Config = None,
    set_: options.SetOfAnswers = None,
    json: options.Json = False,
) -> None:
    """Ask the teacher once, and keep its answers for any run. A killed one goes on where it was.

    Example: stillhouse label --teacher my-teacher --data reviews.csv --out answers
    """
    from stillhouse.core.config import DistillConfig
    from stillhouse.core.settings import parse

    values = options.settings(
        config,
        "distill",
        {
            "teacher": teacher,
            **options.columns(data, text_column, pair_column, label_column),
            "data.unlabelled": unlabelled,
            "cache": out,
            "data.label_map": options.pairs(label_map, "--label-map") if label_map else None,
        },
        set_,
        DistillConfig,
    )
    options.required(values, "teacher", "data.path")
    checked = parse(DistillConfig, values)
    from stillhouse.core.console import Terminal
    from stillhouse.flows.distill import label_only

    folder, rows = label_only(checked, progress=Terminal())
    if json:
        console.print_json({"cache": str(folder), "rows": rows})
    else:
        console.say(f"{rows:,} rows have the teacher's answer in {folder}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="where the demo's runs go")] = Path(
        "stillhouse-demo"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="what the teacher is fine-tuned from (default: the MiniLM of the extra 'demo')",
        ),
    ] = None,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Route support tickets: fine-tune a teacher, distil two layers, compare, export, report.

    Example: stillhouse demo
    """
    from stillhouse.demo import run_demo

    finish(run_demo(out, model=model, cache=cache), json=json)
