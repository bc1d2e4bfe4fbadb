"""The commands about clients of a guarded service."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from stillhouse.cli import console, options
from stillhouse.cli.registry import REGISTRY, Url, registry_at
from stillhouse.core.errors import UsageError

app = typer.Typer(help="Who may ask a guarded model.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="a name that tells you who it is")],
    registry: Url = REGISTRY,
    owner: Annotated[
        bool, typer.Option("--owner", help="a key for /owner, not for asking")
    ] = False,
    queries: Annotated[int | None, typer.Option("--queries", min=1, help="its own budget")] = None,
    money: Annotated[float | None, typer.Option("--money", min=0, help="its own budget")] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="its own budget of tokens that are read")
    ] = None,
    per_s: Annotated[float | None, typer.Option("--per-s", help="its own rate")] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option("--tokens-per-s", help="its own rate in tokens")
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a client and print its API key, once: only a hash of it is kept.

    Example: stillhouse clients create "Ann's shop" --queries 5000
    """
    held = registry_at(registry, new=True)
    for option, rate in (("--per-s", per_s), ("--tokens-per-s", tokens_per_s)):
        if rate is not None and rate <= 0:
            raise UsageError(f"{option} is above 0, got {rate}")
    row, secret = held.create_client(
        name, role="owner" if owner else "client", queries=queries, money=money, per_s=per_s,
        tokens=tokens, tokens_per_s=tokens_per_s,
    )  # fmt: skip
    held.close()
    if json:
        console.print_json({"id": row.id, "name": row.name, "role": row.role, "key": secret})
        return
    typer.echo(f"{row.role} {row.name} ({row.id}); its key is shown this once:", err=True)
    typer.echo(secret)


@app.command("list")
def list_(registry: Url = REGISTRY, json: options.Json = False) -> None:
    """List clients, what they asked, and whether they are flagged.

    Example: stillhouse clients list
    """
    held = registry_at(registry)
    rows = held.clients()
    held.close()
    if json:
        console.print_json([vars(row) | {"evidence": row.evidence.as_json()} for row in rows])
        return
    console.table(
        ("client", "id", "role", "made", "charged", "tokens", "new", "odd", "state"),
        [
            [
                row.name, row.id, row.role, _day(row.created), _of(row.charged, row.queries),
                _of(row.token_charge, row.token_budget),
                f"{row.distinct:,}", f"{row.evidence.odd:,}",
                "revoked" if row.revoked else "flagged" if row.flagged else "",
            ]
            for row in rows
        ],
        whole=("id",),
    )  # fmt: skip


@app.command("revoke")
def revoke(name: str, registry: Url = REGISTRY) -> None:
    """End a client's key; workers know within a second.

    Example: stillhouse clients revoke "Ann's shop"
    """
    held = registry_at(registry)
    done = held.revoke(name)
    held.close()
    typer.echo(f"{name}: revoked" if done else f"{name}: was revoked before", err=True)


@app.command("flag")
def flag(
    name: Annotated[str, typer.Argument(help="a client's name or id")],
    why: Annotated[str, typer.Option("--why", help="what you noticed, for the owner's page")],
    registry: Url = REGISTRY,
) -> None:
    """Flag a client yourself: the service does with it what its setting guard.check.on_flag says.

    Example: stillhouse clients flag "Ann's shop" --why "asks for word lists"
    """
    held = registry_at(registry)
    try:
        done = held.flag(name, why)
    finally:
        held.close()
    typer.echo(f"{name}: flagged" if done else f"{name}: was flagged before", err=True)


@app.command("unflag")
def unflag(name: str, registry: Url = REGISTRY) -> None:
    """Take a flag back; the evidence begins anew.

    Example: stillhouse clients unflag "Ann's shop"
    """
    held = registry_at(registry)
    done = held.unflag(name)
    held.close()
    typer.echo(f"{name}: not flagged any more" if done else f"{name}: was not flagged", err=True)


@app.command("forget")
def forget(
    name: str,
    registry: Url = REGISTRY,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask")] = False,
) -> None:
    """Delete all that a client asked, its marks included: nothing can be proved from it then.

    Example: stillhouse clients forget "Ann's shop"
    """
    held = registry_at(registry)
    held.named(name)
    if not yes:
        typer.confirm(f"Delete everything that {name} asked?", abort=True, err=True)
    gone = held.forget(name)
    held.close()
    typer.echo(f"{name}: {gone:,} rows deleted", err=True)


def _of(done: int, most: int | None) -> str:
    return f"{done:,}" if most is None else f"{done:,} of {most:,}"


def _day(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d")
