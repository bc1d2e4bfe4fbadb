"""What commands of a guarded service share: where its registry and its owner's key are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.core.errors import UsageError

REGISTRY = "sqlite:///stillhouse-guard.db"
NEEDED = ("alembic", "certifi", "cryptography", "fastapi", "prometheus_client", "rfc3161_client",
          "sqlalchemy", "uvicorn")  # fmt: skip

Url = Annotated[
    str, typer.Option("--registry", help="sqlite:///FILE, or postgresql://USER@HOST/NAME")
]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="the owner's key file (default: $STILLHOUSE_GUARD_KEY)"),
]


def needed() -> None:
    """Raises UsageError where what the guard stands on is not installed."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise UsageError(f"the guard needs {name}: pip install 'stillhouse[guard]'")


def registry_at(url: str, *, new: bool = False) -> Any:
    """Raises UsageError for a file that there is not, unless it may be `new`."""
    needed()
    from stillhouse.guard.registry import Registry

    place = url.removeprefix("sqlite:///")
    if not new and place != url and place != ":memory:" and not Path(place).exists():
        raise UsageError(f"there is no registry {place}: name it with --registry")
    held = Registry(url)
    held.upgrade()
    return held
