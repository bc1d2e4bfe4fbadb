"""The commands of a guarded service: serve, clients, keys, the membership check, verification."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli import console, options
from stillhouse.core.errors import UsageError
from stillhouse.core.settings import parse

REGISTRY = "sqlite:///stillhouse-guard.db"

Url = Annotated[
    str, typer.Option("--registry", help="sqlite:///FILE, or postgresql://USER@HOST/NAME")
]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="the owner's key file (default: $STILLHOUSE_GUARD_KEY)"),
]

clients = typer.Typer(help="Who may ask a guarded model.", no_args_is_help=True)
guard = typer.Typer(
    help="The owner's key, the membership check, and verdicts.", no_args_is_help=True
)


def _needed() -> None:
    """Raises UsageError where what the guard stands on is not installed."""
    try:
        import alembic
        import cryptography
        import fastapi
        import prometheus_client
        import sqlalchemy
        import uvicorn
    except ModuleNotFoundError as error:
        raise UsageError(f"the guard needs {error.name}: pip install 'stillhouse[guard]'") from None
    del alembic, cryptography, fastapi, prometheus_client, sqlalchemy, uvicorn


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
    per_s: Annotated[
        float | None, typer.Option("--per-s", help="questions a second a client may ask")
    ] = None,
    host: Annotated[str | None, typer.Option("--host")] = None,
    port: Annotated[int | None, typer.Option("--port")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="processes (over 1: PostgreSQL)")
    ] = None,
    config: options.Config = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = False,
) -> None:
    """Serve a model behind its guard: budgets, a log, marks, a watch for strange clients.

    Example: stillhouse serve my-teacher --key owner.key --queries 10000 --per-s 20
    """
    _needed()
    from stillhouse.guard.serve import ServeConfig
    from stillhouse.guard.workers import run_service

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
            "guard.limits.per_s": per_s,
            "host": host,
            "port": port,
            "workers": workers,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
    )
    if values.get("model") is None:
        raise UsageError("give a model's folder (see --help for an example)")
    checked = parse(ServeConfig, values)
    run_service(
        checked,
        ready=lambda config: typer.echo(
            f"serving {config.model} at http://{config.host}:{config.port} "
            "(/v1/predict, /docs, /owner, /health, /metrics); Ctrl-C stops",
            err=True,
        ),
    )


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
    client: Annotated[
        list[str] | None, typer.Option("--client", help="whose marks (default: everyone's)")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="queries that an API may be asked in all")
    ] = None,
    label_map: Annotated[
        str | None,
        typer.Option("--label-map", metavar="SUSPECT=OURS,...", help="our names for its labels"),
    ] = None,
    config: options.Config = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Find out whether a model is a copy of yours, with a p-value and a signed record.

    Nothing but the suspect and the controls that you name is asked.
    Example: stillhouse verify --suspect their-model --control other-model --key owner.key --out verdict
    """  # noqa: E501
    _needed()
    from stillhouse.guard.keys import read_keys
    from stillhouse.guard.registry import Registry
    from stillhouse.guard.settings import VerifyConfig
    from stillhouse.guard.verify import run_verify

    values = options.settings(
        config,
        "verify",
        {
            "suspects": suspect or None,
            "controls": control or None,
            "clients": client or None,
            "label_map": options.pairs(label_map, "--label-map") if label_map else None,
            "limit": limit,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
    )
    if not values.get("suspects"):
        raise UsageError("give --suspect (see --help for an example)")
    checked = parse(VerifyConfig, values)
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
    console.out.print(f"\n{record.sentence}", soft_wrap=True, markup=False)
    for warning in record.warnings:
        console.out.print(warning, soft_wrap=True, markup=False)
    console.out.print(f"\nReport: {out / 'report.html'}", soft_wrap=True)


@clients.command("create")
def create(
    name: Annotated[str, typer.Argument(help="a name that tells you who it is")],
    registry: Url = REGISTRY,
    owner: Annotated[
        bool, typer.Option("--owner", help="a key for /owner, not for asking")
    ] = False,
    queries: Annotated[int | None, typer.Option("--queries", min=1, help="its own budget")] = None,
    money: Annotated[float | None, typer.Option("--money", min=0, help="its own budget")] = None,
    per_s: Annotated[float | None, typer.Option("--per-s", help="its own rate")] = None,
    json: options.Json = False,
) -> None:
    """Make a client and print its API key, once: only a hash of it is kept.

    Example: stillhouse clients create "Ann's shop" --queries 5000
    """
    held = _registry(registry, new=True)
    if per_s is not None and per_s <= 0:
        raise UsageError(f"--per-s is above 0, got {per_s}")
    row, secret = held.create_client(
        name, role="owner" if owner else "client", queries=queries, money=money, per_s=per_s
    )
    held.close()
    if json:
        console.print_json({"id": row.id, "name": row.name, "role": row.role, "key": secret})
        return
    typer.echo(f"{row.role} {row.name} ({row.id}); its key is shown this once:", err=True)
    typer.echo(secret)


@clients.command("list")
def list_(registry: Url = REGISTRY, json: options.Json = False) -> None:
    """List clients, what they asked, and whether they are flagged.

    Example: stillhouse clients list
    """
    held = _registry(registry)
    rows = held.clients()
    held.close()
    if json:
        console.print_json([vars(row) | {"evidence": vars(row.evidence)} for row in rows])
        return
    console.table(
        ("client", "id", "role", "made", "charged", "new", "odd", "state"),
        [
            [
                row.name, row.id, row.role, _day(row.created), f"{row.charged:,}",
                f"{row.distinct:,}", f"{row.evidence.odd:,}",
                "revoked" if row.revoked else "flagged" if row.flagged else "",
            ]
            for row in rows
        ],
    )  # fmt: skip


@clients.command("revoke")
def revoke(name: str, registry: Url = REGISTRY) -> None:
    """End a client's key; workers know within a second.

    Example: stillhouse clients revoke "Ann's shop"
    """
    held = _registry(registry)
    held.revoke(name)
    held.close()
    typer.echo(f"{name}: revoked", err=True)


@clients.command("unflag")
def unflag(name: str, registry: Url = REGISTRY) -> None:
    """Take a flag back; the evidence begins anew.

    Example: stillhouse clients unflag "Ann's shop"
    """
    held = _registry(registry)
    held.unflag(name)
    held.close()
    typer.echo(f"{name}: not flagged any more", err=True)


@clients.command("forget")
def forget(
    name: str,
    registry: Url = REGISTRY,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask")] = False,
) -> None:
    """Delete all that a client asked, its marks included: nothing can be proved from it then.

    Example: stillhouse clients forget "Ann's shop"
    """
    held = _registry(registry)
    held.named(name)
    if not yes:
        typer.confirm(f"Delete everything that {name} asked?", abort=True, err=True)
    gone = held.forget(name)
    held.close()
    typer.echo(f"{name}: {gone:,} rows deleted", err=True)


@guard.command("keys")
def keys(
    out: Annotated[Path, typer.Argument(help="the new key's file")],
    registry: Annotated[
        str | None, typer.Option("--registry", help="also commit to the key there")
    ] = None,
) -> None:
    """Make the owner's key. Keep it: without it marks prove nothing.

    Example: stillhouse guard keys owner.key
    """
    _needed()
    from stillhouse.guard.keys import new_keys

    made = new_keys(out)
    if registry is not None:
        held = _registry(registry, new=True)
        held.commit_to(made)
        held.close()
    typer.echo(f"{out}: key {made.id}, commitment {made.commitment}, public key {made.public}")


@guard.command("learn")
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
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.Set = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Learn to tell questions like your data from made-up ones.

    Example: stillhouse guard learn --model my-teacher --data reviews.csv --out check
    """
    _needed()
    from stillhouse.core.console import Terminal
    from stillhouse.guard.learning import LearnConfig, learn_check

    values = options.settings(
        config,
        "learn",
        {
            "model": model,
            **options.columns(data, text_column, pair_column, label_column),
            "data.unlabelled": customers,
            "corpus": corpus,
            "features": features,
            "cache": cache,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
    )
    options.required(values, "model", "data.path")
    found = learn_check(parse(LearnConfig, values), out, progress=Terminal())
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
    console.out.print(
        f"\nOf your reported rows {found.honest:.1%} are beyond the line: the setting "
        "guard.check.tolerance (0.1) must stay above that.",
        soft_wrap=True,
    )
    if all(each.at_line <= 0.1 for each in found.qualities if each.kind != "shuffled"):
        console.out.print(
            "It tells made-up questions so badly that at this tolerance it would flag nobody: give "
            "more rows, or another corpus.",
            soft_wrap=True,
        )


@guard.command("check-verdict")
def check_verdict(
    folder: Annotated[Path, typer.Argument(help="a verification's folder")],
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="the owner's, known from elsewhere")
    ] = None,
) -> None:
    """Check a verdict by itself: signature, commitment, and the result reckoned anew. It shows that
    nothing was changed since, not that its owner was honest.

    Example: stillhouse guard check-verdict verdict
    """
    _needed()
    from stillhouse.guard.verify import check

    found = check(folder, public_key=public_key)
    for name, good in found:
        console.out.print(f"{'ok  ' if good else 'FAIL'}  {name}", markup=False)
    if not all(good for _, good in found):
        raise typer.Exit(1)


def _registry(url: str, *, new: bool = False) -> Any:
    """Raises UsageError for a file that there is not, unless it may be `new`."""
    _needed()
    from stillhouse.guard.registry import Registry

    place = url.removeprefix("sqlite:///")
    if not new and place != url and place != ":memory:" and not Path(place).exists():
        raise UsageError(f"there is no registry {place}: name it with --registry")
    held = Registry(url)
    held.upgrade()
    return held


def _day(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d")
