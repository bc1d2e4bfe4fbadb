"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.core.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="a CSV, TSV, JSONL or Parquet file, a folder with train/dev files, or a hub name",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="the run's folder")]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="settings from a YAML file, such as another run's config.yaml"),
]


def _set(example: str) -> Any:
    """--set, with an example that the command takes."""
    return typer.Option("--set", metavar="NAME=VALUE", help=f"any setting, e.g. {example}")


Set = Annotated[list[str] | None, _set("training.lr=3e-5")]
SetOfAnswers = Annotated[list[str] | None, _set("label.precision=float32")]
SetOfData = Annotated[list[str] | None, _set("data.max_length=64")]
SetOfRemoval = Annotated[list[str] | None, _set("recover.training.lr=3e-5")]
SetOfService = Annotated[list[str] | None, _set("guard.limits.per_s=20")]
SetOfVerdict = Annotated[list[str] | None, _set("alpha=1e-4")]
SetOfCheck = Annotated[list[str] | None, _set("data.max_length=64")]
SetOfThieves = Annotated[list[str] | None, _set("thieves.0.training.lr=3e-5")]
Json = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help="where rows, tokens and answers are kept (default: ~/.cache/stillhouse)",
    ),
]
Text = Annotated[str | None, typer.Option("--text-column", help="the column of the text")]
Pair = Annotated[str | None, typer.Option("--pair-column", help="the column of the second text")]
Label = Annotated[str | None, typer.Option("--label-column", help="the column of the label")]
LabelMap = Annotated[
    str | None,
    typer.Option(
        "--label-map", metavar="TEACHER=DATA,...", help="the data's names for the teacher's labels"
    ),
]
Unlabelled = Annotated[
    str | None,
    typer.Option("--unlabelled", help="a file of more texts, which only the teacher answers"),
]
Student = Annotated[
    str | None,
    typer.Option(
        "--student",
        help="layers=3; layers=3,keep=last; layers=1+3+6; width=256,ffn=1024,layers=4; or a model",
    ),
]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="how many seeds to train")]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="classification, regression, span (default: as head or labels are), masked_lm, "
        "seq2seq, causal_lm",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="a published method's objective or stages: kd, fitnets, pkd-skip, pkd-last, tinybert, "
        "minilm, minilm2, pretrained-distillation; of models that write: word-kd, seq-kd, "
        "seq-inter, gkd",
    ),
]
Corpus = Annotated[
    str | None,
    typer.Option(
        "--corpus", help="running text (.txt, or a folder with train.txt) for a method that uses it"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="bf16 or float32 (default: auto, the faster on this machine)"),
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that comes with a model")
]


def pairs(text: str, option: str) -> dict[str, str]:
    """`a=1,b=2` as a dict."""
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{option} takes name=value,..., got {text!r}")
        found[name.strip()] = value.strip()
    return found


def student(text: str) -> dict[str, Any]:
    """The student section of what --student says."""
    if "=" not in text:
        if text.isdigit():
            raise UsageError(f"--student takes layers={text}, not {text}")
        return {"model": text}
    import yaml

    found: dict[str, Any] = {}
    for name, value in pairs(text, "--student").items():
        if name == "layers" and "+" in value:
            found[name] = [yaml.safe_load(k) for k in value.split("+")]
        else:
            found[name] = yaml.safe_load(value)
    return found


def columns(
    data: str | None, text: str | None, pair: str | None, label: str | None
) -> dict[str, str | None]:
    """The settings of --data and of the options that name its columns."""
    return {"data.path": data, "data.text": text, "data.pair": pair, "data.label": label}


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets values[a][b] for path 'a.b', unless the value is None."""
    if value is None:
        return
    *sections, last = path.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UsageError(f"{section} is a section: give its settings, such as {path}: VALUE")
    place[last] = value


def settings(
    config: Path | None,
    flow: str,
    given: dict[str, Any],
    extra: list[str] | None,
    kind: type[BaseModel],
) -> dict[str, Any]:
    """The settings of `kind`: a config file's, then the options, then --set."""
    from stillhouse.core.settings import override, read_yaml

    values = read_yaml(config) if config else {}
    if values.get("flow", flow) != flow:
        raise UsageError(f"{config} is of a {values['flow']} run, not {flow}")
    for path, value in given.items():
        put(values, path, value)
    return override(values, extra or [], kind)


def of_data(settings: Mapping[str, Any], extra: list[str] | None) -> dict[str, Any]:
    """The section `data` of a command that has no other, with what --set says of it."""
    from stillhouse.core.config import FinetuneConfig
    from stillhouse.core.settings import override

    values = override({"data": dict(settings)}, extra or [], FinetuneConfig)  # as any with data
    if other := [name for name in values if name != "data"]:
        raise UsageError(f"--set {other[0]}: only settings of data (data.NAME) are used here")
    return values["data"]


def required(values: dict[str, Any], *paths: str) -> None:
    """Raises UsageError for an option that neither the command nor a config gives."""
    for path in paths:
        place: Any = values
        for section in path.split("."):
            place = place.get(section) if isinstance(place, dict) else None
        if place is None:
            option = {"data.path": "--data"}.get(path, f"--{path}")
            raise UsageError(f"give {option} (see --help for an example)")


def of_method(name: str | None, corpus: str | None = None) -> dict[str, Any]:
    """The settings of --method. Raises UsageError for a corpus that nothing uses."""
    if name is None:
        if corpus is not None:
            raise UsageError("--corpus is for a --method that begins on running text, as tinybert")
        return {}
    from stillhouse.flows.methods import method

    return method(name, corpus)
