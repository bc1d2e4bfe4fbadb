"""From YAML files and `--set` to checked configs, with one line on the first thing wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stillhouse.core.errors import UsageError, unknown
from stillhouse.core.terms import INNER, RESPONSE

C = TypeVar("C", bound=BaseModel)
LAYERS = ("uniform", "top", "bottom", "skip", "last", "final")


def parse(kind: type[C], values: Mapping[str, Any]) -> C:
    """`values` as a checked config. Raises UsageError with one line on the first thing wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # how pydantic names alternatives
        inner = ("constrained-", "list[", "function-", "tuple[", "literal[")
        loc = [str(part) for part in first["loc"]]
        tags = ("int", "float", "inner", "response")
        shown = [p for p in loc if not p.startswith(inner) and p not in tags]
        where = ".".join(shown)
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])
            if elsewhere := _elsewhere(kind, name):
                raise UsageError(
                    f"unknown setting {where!r}: did you mean {elsewhere!r}?"
                ) from None
            known = _known(kind, first["loc"][:-1])
            raise UsageError(unknown("setting", name, known)) from None
        if first["type"] == "term_kind":
            kind_of = first["input"].get("kind") if isinstance(first["input"], dict) else None
            raise UsageError(unknown(f"{where}.kind", str(kind_of), (*RESPONSE, *INNER))) from None
        if (
            first["type"] == "literal_error"
            and "layers" not in loc
            and isinstance(first["input"], str)
        ):
            known = re.findall(r"'([^']*)'", first.get("ctx", {})["expected"])
            place = re.sub(r"\.\d+$", "", where)  # of several
            raise UsageError(unknown(place, first["input"], known)) from None
        message = first["msg"].removeprefix("Value error, ")
        if "inner" in loc and "layers" in loc:
            message = f"one of {', '.join(LAYERS)}, or pairs such as [[1, 2], [3, 6]]"
        raise UsageError(f"setting {where or 'config'}: {message}") from None


def section(kind: type[BaseModel], given: object, key: str) -> dict[str, Any]:
    """A config's section given as an object of ours, a dict, or the value of its `key` alone."""
    if isinstance(given, kind):
        return given.model_dump()
    return dict(given) if isinstance(given, Mapping) else {key: str(given)}


def _known(kind: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """Names of the settings of the section at `path`."""
    for part in path:
        if isinstance(part, str) and part in kind.model_fields:
            kinds = list(_sections(kind.model_fields[part].annotation))
            kind = kinds[-1 if "inner" in path else 0] if kinds else kind
    return list(kind.model_fields)


def _elsewhere(kind: type[BaseModel], name: str) -> str | None:
    """The dotted name of a setting of this name, if exactly one section has it."""
    found = [
        f"{section}.{name}"
        for section, field in kind.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and name in field.annotation.model_fields
    ]
    if name in kind.model_fields:
        found.append(name)
    return found[0] if len(found) == 1 else None


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    """The configs in an annotation: of a section itself, or of a tuple of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file's settings, unchecked."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no config file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no settings")
    return values


def override(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """`values` with each 'a.b=value' of `settings` put in; values are read as YAML."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes name=value, as in training.lr=3e-5; got {setting!r}")
        *sections, last = name.split(".")
        place: Any = values
        if sections[:1] == ["stages"] and not isinstance(values.get("stages"), list):
            raise UsageError(f"--set {name}: this run has one stage: its settings are training.*")
        for section in sections:
            place = _inside(place, section, name)
        if sections == ["training"] and _set_by_every_stage(values.get("stages"), last):
            raise UsageError(
                f"--set {name}: every stage has its own: set stages.NAME.training.{last}"
            )
        if isinstance(place, list):
            place[_position(place, last, name)] = _value(text)
        else:
            place[last] = _value(text)
    return values


def _set_by_every_stage(stages: Any, setting: str) -> bool:
    """Whether a run's training setting would be nobody's."""
    if not isinstance(stages, list) or not stages:
        return False
    return all(isinstance(s, dict) and setting in (s.get("training") or {}) for s in stages)


def _inside(place: Any, section: str, name: str) -> Any:
    """The section of that name, or the entry of a list with that number (or stage name)."""
    if isinstance(place, list):
        inner = place[_position(place, section, name)]
    else:
        inner = place.setdefault(section, {})
    if not isinstance(inner, dict | list):
        raise UsageError(f"--set {name}: {section} is not a section")
    return inner


def _position(place: list[Any], section: str, name: str) -> int:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in place]
    if section in names:
        return names.index(section)
    if not section.isdigit() or int(section) >= len(place):
        numbers = [str(i) for i in range(len(place))]
        known = [str(each) for each in names if each] or numbers
        raise UsageError(f"--set {name}: " + unknown("entry", section, known))
    return int(section)


def _value(text: str) -> Any:
    """YAML's reading of `text`, and numbers such as 3e-5, which YAML 1.1 takes for words."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set: can't read the value {text!r}") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
