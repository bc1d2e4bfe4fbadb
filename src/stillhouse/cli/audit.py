"""The command that audits: what a copy of one's own model costs a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.cli import console, options
from stillhouse.core.errors import UsageError

if TYPE_CHECKING:
    from stillhouse.core.audit_results import AuditRecord
    from stillhouse.extract.config import AuditConfig

ASK_ABOVE = 10.0  # money


def audit(
    out: options.Out,
    victim: Annotated[
        str | None,
        typer.Option("--victim", help="your model: a folder, or the YAML description of its API"),
    ] = None,
    data: options.Data = None,
    thief: Annotated[
        str | None, typer.Option("--thief", help="a public pretrained model: a folder or hub name")
    ] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", help="wiki,random,frequency,shuffled,pool")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="in training sets' sizes: 0.1,0.5,1")
    ] = None,
    views: Annotated[
        str | None,
        typer.Option("--views", help="what is shown: probabilities,probabilities:2,top:1,label"),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="text that queries are made of: a file, folder")
    ] = None,
    choose: Annotated[
        str | None,
        typer.Option("--choose", help="choose queries too: uncertainty,k-centre,both"),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="a file of queries of your own")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="queries that an API may be asked in all")
    ] = None,
    ask_above: Annotated[
        float, typer.Option("--ask-above", help="ask before an API may charge more than this")
    ] = ASK_ABOVE,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask")] = False,
    seeds: options.Seeds = None,
    task: options.Task = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    label_map: options.LabelMap = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.SetOfThieves = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Find out what a copy of your own model costs a stranger who can only ask it.

    Nothing but the victim that you name is asked. For your own models, or with their owner's leave.
    Example: stillhouse audit --victim my-teacher --data reviews.csv --thief all-MiniLM-L6-v2 --out audit
    """  # noqa: E501
    from stillhouse.core.settings import parse
    from stillhouse.extract.config import AuditConfig

    values = options.settings(
        config,
        "audit",
        {
            "victim": victim,
            **options.columns(data, text_column, pair_column, label_column),
            "data.label_map": options.pairs(label_map, "--label-map") if label_map else None,
            "thieves": [{"model": thief}] if thief else None,
            "queries.kinds": queries.split(",") if queries else None,
            "queries.budgets": _numbers(budget) if budget else None,
            "queries.corpus": corpus,
            "queries.pool": pool,
            "queries.choose": choose.split(",") if choose else None,
            "views": views.split(",") if views else None,
            "limit": limit,
            "evaluation.seeds": list(range(seeds)) if seeds else None,
            "task": task,
            "cache": cache,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        AuditConfig,
    )
    options.required(values, "victim", "data.path")
    finish_audit(parse(AuditConfig, values), out, json=json, ask_above=None if yes else ask_above)


def _numbers(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise UsageError(f"--budget takes numbers, as in 0.1,0.5,1; got {text!r}") from None


def finish_audit(
    config: AuditConfig, out: Path, *, json: bool, ask_above: float | None = ASK_ABOVE
) -> None:
    """Says what an audit will ask, asks the user where that may cost much, runs it, and prints it.
    `ask_above`: money; None: the user isn't asked."""
    from stillhouse.core.console import Terminal
    from stillhouse.extract.runs import expected, run_audit

    if not (out / "record.json").is_file():
        bill = expected(config, progress=Terminal())
        typer.echo(bill.sentence, err=True)
        if bill.earnest and ask_above is not None and bill.money > ask_above:
            typer.confirm("Go on? (--yes or --ask-above asks no more)", abort=True, err=True)
    run = run_audit(config, out)
    if json:
        console.print_json(run.record.model_dump(mode="json", by_alias=True))
        return
    _copies(run.record)
    console.say(f"\nReport: {run.out / 'report.html'}")


def _copies(record: AuditRecord) -> None:
    related = record.task == "regression"
    rows = [
        [
            each.kind if each.selection == "random" else f"{each.kind}, {each.selection}",
            each.view,
            f"{each.queries:,}",
            f"{record.currency}{each.money:,.2f}",
            f"{each.score:.4f}",
            "-" if each.retention is None else f"{100 * each.retention:.1f} %",
            f"{each.agreement:.3f}" if related else f"{100 * each.agreement:.1f} %",
        ]
        for each in record.copies
    ]
    columns = (
        "queries",
        "shown",
        "asked",
        "price",
        record.metric,
        "of the victim",
        "correlates" if related else "agrees",
    )
    console.table(columns, rows)
    console.say(f"\n{record.sentence}")
    for leak in record.leaks:
        console.say(f"{leak.name}: {leak.finding}")
