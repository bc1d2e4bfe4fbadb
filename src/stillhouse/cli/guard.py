"""The commands of a guarded service: serve, keys, the membership check, verification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import console, evidence, options
from stillhouse.cli.registry import REGISTRY, Key, Url, needed, registry_at
from stillhouse.core.errors import UsageError

app = typer.Typer(
    help="The owner's key, log heads, the membership check, and verdicts.", no_args_is_help=True
)
app.command("heads")(evidence.heads)
app.command("blind-questions")(evidence.blind_questions)
app.command("blind-ask")(evidence.blind_ask)


def serve(
    model: Annotated[str | None, typer.Argument(help="a fine-tuned model's folder")] = None,
    registry: Annotated[
        str | None,
        typer.Option("--registry", help="sqlite:///FILE, or postgresql://USER@HOST/NAME"),
    ] = None,
    key: Key = None,
    shows: Annotated[
        str | None,
        typer.Option("--shows", help="probabilities, probabilities:2, top:1, label, value, text"),
    ] = None,
    membership: Annotated[
        str | None, typer.Option("--membership", help="a learned check's folder (guard learn)")
    ] = None,
    on_flag: Annotated[
        str | None,
        typer.Option("--on-flag", help="for flagged clients: log, throttle, label, random"),
    ] = None,
    curve: Annotated[
        str | None, typer.Option("--curve", help="an audit's folder: how much of it clients used")
    ] = None,
    queries: Annotated[
        int | None, typer.Option("--queries", min=1, help="questions a client may ask in all")
    ] = None,
    money: Annotated[
        float | None, typer.Option("--money", min=0, help="what a client may spend in all")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="tokens that are read for a client in all")
    ] = None,
    per_s: Annotated[
        float | None, typer.Option("--per-s", help="questions a second a client may ask")
    ] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option("--tokens-per-s", help="tokens a second of a client's questions")
    ] = None,
    host: Annotated[str | None, typer.Option("--host")] = None,
    port: Annotated[int | None, typer.Option("--port")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="processes (over 1: PostgreSQL)")
    ] = None,
    behind_tls: Annotated[
        bool, typer.Option("--behind-tls", help="a proxy in front does TLS: no warning of --host")
    ] = False,
    precision: options.Precision = None,
    config: options.Config = None,
    set_: options.SetOfService = None,
    trust_remote_code: options.Trust = False,
) -> None:
    """Serve a model behind its guard: budgets, a log, marks, a watch for strange clients.

    Example: stillhouse serve my-teacher --key owner.key --queries 10000 --per-s 20
    """
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.settings import ServeConfig

    values = options.settings(
        config,
        "serve",
        {
            "model": model,
            "registry": registry,
            "key": None if key is None else str(key),
            "guard.shows": shows,
            "membership": membership,
            "guard.check.on_flag": on_flag,
            "curve": curve,
            "guard.limits.queries": queries,
            "guard.limits.money": money,
            "guard.limits.tokens": tokens,
            "guard.limits.per_s": per_s,
            "guard.limits.tokens_per_s": tokens_per_s,
            "host": host,
            "port": port,
            "workers": workers,
            "behind_tls": behind_tls or None,
            "precision": precision,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        ServeConfig,
    )
    if values.get("model") is None:
        raise UsageError("give a model's folder (see --help for an example)")
    checked = parse(ServeConfig, values)
    from stillhouse.guard.workers import run_service

    run_service(
        checked,
        ready=lambda config: typer.echo(
            f"serving {config.model} at http://{_host(config.host)}:{config.port} "
            "(/v1/predict, /docs, /owner, /health, /metrics); Ctrl-C stops",
            err=True,
        ),
        told=lambda note: typer.echo(note, err=True),
    )


def _host(name: str) -> str:
    """As it stands in an address."""
    return f"[{name}]" if ":" in name else name


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


@app.command("keys")
def keys(
    out: Annotated[Path, typer.Argument(help="the new key's file")],
    registry: Annotated[
        str | None, typer.Option("--registry", help="also commit to the key there")
    ] = None,
) -> None:
    """Make the owner's key. Keep it: without it marks prove nothing.

    Example: stillhouse guard keys owner.key
    """
    needed()
    from stillhouse.guard.keys import new_keys

    made = new_keys(out)
    if registry is not None:
        held = registry_at(registry, new=True)
        held.commit_to(made)
        held.close()
    typer.echo(f"{out}: key {made.id}, commitment {made.commitment}, public key {made.public}")


@app.command("learn")
def learn(
    out: options.Out,
    model: Annotated[str | None, typer.Option("--model", help="the model that is served")] = None,
    data: options.Data = None,
    customers: Annotated[
        str | None, typer.Option("--customers", help="a file of texts that honest customers ask")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="text that made-up questions come from")
    ] = None,
    features: Annotated[
        str | None, typer.Option("--features", help="both, last (states), or logits")
    ] = None,
    precision: options.Precision = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.SetOfCheck = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Learn to tell questions like your data from made-up ones.

    Example: stillhouse guard learn --model my-teacher --data reviews.csv --out check
    """
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.settings import LearnConfig

    values = options.settings(
        config,
        "learn",
        {
            "model": model,
            **options.columns(data, text_column, pair_column, label_column),
            "data.unlabelled": customers,
            "corpus": corpus,
            "features": features,
            "precision": precision,
            "cache": cache,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        LearnConfig,
    )
    options.required(values, "model", "data.path")
    checked = parse(LearnConfig, values)
    from stillhouse.core.console import Terminal
    from stillhouse.guard.learning import learn_check
    from stillhouse.guard.settings import Odds
    from stillhouse.guard.suspicion import blocks_of

    found = learn_check(checked, out, progress=Terminal())
    if json:
        console.print_json(found.as_json())
        return
    console.table(
        ("questions", "count", "AUC", "accuracy", "beyond the line"),
        [
            [q.kind, f"{q.count:,}", f"{q.auc:.3f}", f"{q.accuracy:.3f}", f"{q.at_line:.1%}"]
            for q in found.qualities
        ],
    )
    console.say(
        f"\nOf your reported rows {found.honest:.1%} are beyond the line: the setting "
        "guard.check.tolerance (0.1) must stay above that. How long bursts of odd questions are "
        "(guard.check.burst), clients you trust show: stillhouse guard bursts."
    )
    usual = Odds()
    least = blocks_of(usual.tolerance, usual.burst).expected
    if all(each.at_line <= least for each in found.qualities if each.kind != "shuffled"):
        console.say(
            f"It tells made-up questions so badly that at this tolerance (and guard.check.burst "
            f"{usual.burst:g}) it would flag nobody: give more rows, or another corpus."
        )


@app.command("bursts")
def bursts(
    client: Annotated[
        list[str] | None,
        typer.Option("--client", help="a client you trust (default: all that are not flagged)"),
    ] = None,
    registry: Url = REGISTRY,
    alpha: Annotated[float | None, typer.Option("--alpha", help="guard.check.alpha")] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="guard.check.tolerance")
    ] = None,
    burst: Annotated[float | None, typer.Option("--burst", help="guard.check.burst")] = None,
    json: options.Json = False,
) -> None:
    """Learn from honest clients' questions how long their bursts of odd ones are, and what to set.

    Example: stillhouse guard bursts --client "Ann's shop" --client "Bob's shop"
    """
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.bursts import bursts_of
    from stillhouse.guard.settings import Odds

    values = {"alpha": alpha, "tolerance": tolerance, "burst": burst}
    odds = parse(Odds, {name: value for name, value in values.items() if value is not None})
    held = registry_at(registry)
    try:
        found = bursts_of(held, client or (), odds)
    finally:
        held.close()
    if json:
        console.print_json(found.as_json())
        return
    if not client:
        console.say("All clients that are not flagged are taken for honest (name some: --client).")
    for sentence in found.advice(odds):
        console.say(sentence)


@app.command("check-verdict")
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
