"""Complete named configs: list them, read one, run one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli import console, options
from stillhouse.cli.audit import finish_audit
from stillhouse.cli.runs import finish
from stillhouse.cli.tickets import finish_removal, finish_search
from stillhouse.core.errors import RunError, UsageError, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel

app = typer.Typer(help="Complete named configs.", no_args_is_help=True, rich_markup_mode=None)


def folder() -> Path:
    """Where the recipes are: in the package, or beside it in a source tree."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


def known() -> dict[str, Path]:
    files = [p for p in folder().glob("*") if p.suffix in (".yaml", ".py") and p.stem != "__init__"]
    return {path.stem: path for path in sorted(files)}


def _path(name: str) -> Path:
    found = known()
    if name not in found:
        raise UsageError(unknown("recipe", name, found))
    return found[name]


def _title(path: Path) -> str:
    """The first line of a recipe's header."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.strip('#" ')


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List the recipes. Example: stillhouse recipes list"""
    titles = {name: _title(path) for name, path in known().items()}
    if json:
        console.print_json(titles)
    else:
        for name, title in titles.items():
            console.say(f"{name:<24} {title}")


@app.command()
def show(name: Annotated[str, typer.Argument()]) -> None:
    """Print a recipe. Example: stillhouse recipes show sst2_teacher"""
    print(_path(name).read_text(encoding="utf-8"), end="")


@app.command()
def run(
    name: Annotated[str, typer.Argument()],
    out: options.Out,
    set_: options.SetOfData = None,
    json: options.Json = False,
    more: Annotated[list[str] | None, typer.Argument(help="for a script recipe, after --")] = None,
) -> None:
    """Run a recipe. Example: stillhouse recipes run sst2_teacher --out sst2-teacher"""
    path = _path(name)
    if path.suffix == ".py":
        if json:
            raise UsageError(f"recipe {name} is a script and has no --json; it writes into --out")
        changes = [word for change in set_ or [] for word in ("--set", change)]
        command = [sys.executable, str(path), "--out", str(out), *changes, *(more or [])]
        if subprocess.run(command, check=False).returncode:
            raise RunError(f"recipe {name} failed")
        return
    if more:
        raise UsageError(f"recipe {name} takes no {more[0]}; settings go through --set")
    from stillhouse.core.settings import override

    values = read(path)
    _run(override(values, set_ or [], _kind(values.get("flow"))), out, json=json)


def _kind(flow: object) -> type[BaseModel]:
    """The config of a flow's settings."""
    from stillhouse.core.config import DistillConfig, FinetuneConfig
    from stillhouse.extract.config import AuditConfig
    from stillhouse.tickets.config import RemoveConfig, TicketsConfig

    kinds: dict[object, type[BaseModel]] = {
        "tickets": TicketsConfig,
        "audit": AuditConfig,
        "remove": RemoveConfig,
        "finetune": FinetuneConfig,
    }
    return kinds.get(flow, DistillConfig)


def _run(values: dict[str, Any], out: Path, *, json: bool) -> None:
    """Runs settings by the flow that they name."""
    from stillhouse.core.config import DistillConfig, FinetuneConfig
    from stillhouse.core.settings import parse
    from stillhouse.extract.config import AuditConfig
    from stillhouse.tickets.config import TicketsConfig

    flow = values.get("flow")
    if flow == "tickets":
        finish_search(parse(TicketsConfig, values), out, json=json)
    elif flow == "audit":
        finish_audit(parse(AuditConfig, values), out, json=json)
    elif flow == "remove":
        finish_removal(values, out, recover=True, json=json)
    elif flow == "finetune":
        checked = parse(FinetuneConfig, values)
        from stillhouse.runs import run_finetune

        finish(run_finetune(checked, out), json=json)
    else:
        checked = parse(DistillConfig, values)
        from stillhouse.runs import run_distill

        finish(run_distill(checked, out), json=json)


def read(path: Path) -> dict[str, Any]:
    """A recipe's settings, with $NAMES taken from the environment and $MINILM found."""
    from stillhouse.core.settings import yaml_settings

    text = path.read_text(encoding="utf-8")
    if "$MINILM" in text:
        from stillhouse.models.builtin import minilm

        text = text.replace("$MINILM", str(minilm()))
    text = os.path.expandvars(text)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    missing = re.search(r"\$\{?(\w+)", body)
    if missing:
        raise UsageError(f"this recipe needs ${missing[1]}: set it, e.g. export {missing[1]}=/data")
    return yaml_settings(text, str(path))
