"""The command of a guarded service."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse.cli import options
from stillhouse.cli.registry import Key, needed
from stillhouse.core.errors import UsageError


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
