"""The commands about verdicts: is a model a copy, and does a verdict hold?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import console, options
from stillhouse.cli.registry import REGISTRY, Key, Url, needed
from stillhouse.core.errors import UsageError


def verify(
    suspect: Annotated[
        list[str] | None,
        typer.Option("--suspect", help="a model's folder, or the YAML description of an API"),
    ] = None,
    out: options.Out = Path("verdict"),
    registry: Url = REGISTRY,
    key: Key = None,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", help="a model known to be independent (repeatable)"),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option("--answers", help="a third party's sealed answers (guard blind-ask)"),
    ] = None,
    client: Annotated[
        list[str] | None, typer.Option("--client", help="whose marks (default: everyone's)")
    ] = None,
    released: Annotated[
        str | None,
        typer.Option("--released", metavar="DAY", help="when the suspect could first be asked"),
    ] = None,
    unstamped: Annotated[
        bool, typer.Option("--unstamped", help="use questions too that no time stamp binds")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", help="queries that an API may be asked in all")
    ] = None,
    label_map: Annotated[
        str | None,
        typer.Option("--label-map", metavar="SUSPECT=OURS,...", help="our names for its labels"),
    ] = None,
    precision: options.Precision = None,
    config: options.Config = None,
    set_: options.SetOfVerdict = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Find out whether a model is a copy of yours, with a p-value and a signed record, which says
    what of it is bound from outside (guard heads) and what rests on your word.

    Nothing but the suspect and the controls that you name is asked; with --answers, nobody.
    Example: stillhouse verify --suspect their-model --control other-model --key owner.key --out verdict
    """  # noqa: E501
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.settings import VerifyConfig

    values = options.settings(
        config,
        "verify",
        {
            "suspects": suspect or None,
            "controls": control or None,
            "answers": None if answers is None else str(answers),
            "released": released,
            "unstamped": unstamped or None,
            "clients": client or None,
            "label_map": options.pairs(label_map, "--label-map") if label_map else None,
            "limit": limit,
            "precision": precision,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        VerifyConfig,
    )
    if not values.get("suspects") and not values.get("answers"):
        raise UsageError("give --suspect, or --answers (see --help for an example)")
    checked = parse(VerifyConfig, values)
    from stillhouse.guard.keys import read_keys
    from stillhouse.guard.registry import Registry
    from stillhouse.guard.verify import run_verify

    held = Registry(registry)
    try:
        held.upgrade()
        record = run_verify(checked, held, read_keys(key), out)
    finally:
        held.close()
    if json:
        console.print_json(record.model_dump(mode="json", by_alias=True))
        return
    rows = [
        [
            each.name + (" (control)" if each.control else ""), t.client, t.form,
            f"{t.hits}/{t.marks}", f"{t.chance_hits}/{t.controls}", f"{t.adjusted:.1e}",
        ]
        for each in record.suspects
        for t in each.trials
    ]  # fmt: skip
    console.table(("model", "client", "questions", "marks", "controls", "p"), rows)
    console.say(f"\n{record.sentence}\n")
    console.table(("what this rests on", "bound by"), [[f.what, f.bound] for f in record.facts])
    for warning in record.warnings:
        console.say(warning)
    console.say(f"\nReport: {out / 'report.html'}")


def check_verdict(
    folder: Annotated[Path, typer.Argument(help="a verification's folder")],
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="the owner's, known from elsewhere")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", help="a log head's hash or file, known from elsewhere"),
    ] = None,
    stamp: Annotated[
        Path | None, typer.Option("--stamp", help="a time stamp of a log head, had from elsewhere")
    ] = None,
    authority: Annotated[
        list[Path] | None,
        typer.Option("--authority", help="a PEM file: a time-stamp authority's root you trust"),
    ] = None,
    answers: Annotated[
        str | None, typer.Option("--answers", help="the digest that the third party kept")
    ] = None,
) -> None:
    """Check a verdict by itself: every file, the key, the log heads and their time stamps, and the
    result and the page reckoned anew. Then it says what that does not show.

    Example: stillhouse guard check-verdict verdict --public-key 3d40... --head head.json
    """
    needed()
    from stillhouse.guard.checking import check, limits

    found = check(
        folder, public_key=public_key, head=head, stamp=stamp, authorities=authority or (),
        answers=answers,
    )  # fmt: skip
    for name, good in found:
        console.say(f"{'ok  ' if good else 'FAIL'}  {name}")
    if not all(good for _, good in found):
        raise typer.Exit(1)
    console.say("\nWhat this does not show:")
    for each in limits(folder, public_key=public_key, authorities=authority or ()):
        console.say(f"- {each}")
