"""From YAML files and `--set` to checked configs, with one line on the first thing wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from stillhouse.core.errors import UsageError, unknown
from stillhouse.core.terms import INNER, RESPONSE, Config

C = TypeVar("C", bound=BaseModel)
SHOWN = 4  # places of a setting that a refusal names
SHORT = {"data": "path", "student": "model"}  # sections that one value may stand for
NOTHING = ("null", "Null", "NULL", "~")  # how YAML writes it
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
            asked = _asked(shown, first["input"])
            if elsewhere := _elsewhere(kind, asked, len(shown)):
                raise UsageError(
                    f"unknown setting {'.'.join(asked)!r}: did you mean {elsewhere}?"
                ) from None
            known = _known(kind, first["loc"][:-1])
            raise UsageError(unknown("setting", shown[-1], known)) from None
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
        if first["type"] == "model_type":
            message = f"is a section: give its settings, such as {where}.NAME: VALUE"
        if "inner" in loc and "layers" in loc:
            message = f"one of {', '.join(LAYERS)}, or pairs such as [[1, 2], [3, 6]]"
        raise UsageError(f"setting {where or 'config'}: {message}") from None


def section(kind: type[BaseModel], given: object, key: str) -> dict[str, Any]:
    """A config's section given as an object of ours, a dict, or the value of its `key` alone."""
    if isinstance(given, kind):
        return given.model_dump()
    return dict(given) if isinstance(given, Mapping) else {key: path_of(given, key)}


def path_of(value: object, what: str, taken: str = "a path") -> str:
    """A path as text. Raises UsageError, which names what was given instead."""
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    raise UsageError(f"{what} is {described(value)}: give {taken}")


def model_path(value: object, what: str) -> str:
    """A model's folder or hub name as text. Raises UsageError for a model in memory."""
    if hasattr(value, "state_dict") or hasattr(value, "tokenizer"):
        raise UsageError(
            f"{what} is {described(value)}: models in memory are not supported yet, save it with "
            "its tokenizer (save_pretrained) and give the folder"
        )
    return path_of(value, what, "a model's folder or a hub name")


def described(value: object) -> str:
    """What a value is, in words: `None`, `a DataFrame`, `the function predict`."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {getattr(value, '__name__', '')}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _known(kind: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """Names of the settings of the section at `path`."""
    for part in path:
        if isinstance(part, str) and part in kind.model_fields:
            kinds = list(_sections(kind.model_fields[part].annotation))
            kind = kinds[-1 if "inner" in path else 0] if kinds else kind
    return list(kind.model_fields)


def _asked(path: list[str], value: object) -> list[str]:
    """The dotted path that was set: into the value where that is a section with one entry."""
    while isinstance(value, dict) and len(value) == 1:
        (name, value) = next(iter(value.items()))
        path = [*path, str(name)]
    return path


def _elsewhere(kind: type[BaseModel], asked: list[str], unknown: int) -> str | None:
    """Where a setting that isn't at `asked`, whose first `unknown` names lead to the unknown one,
    is: paths that end alike, of these the nearest to the top."""
    paths = list(dict.fromkeys(_paths(kind)))
    for end in range(len(asked), unknown - 1, -1):
        for start in range(unknown):
            ending = tuple(asked[start:end])
            found = [path for path in paths if path[-len(ending) :] == ending]
            least = min(map(len, found), default=0)
            nearest = [repr(".".join(path)) for path in found if len(path) == least]
            if nearest and len(nearest) <= SHOWN:
                return " or ".join(nearest)
    return None


def _paths(kind: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every setting's path. Of several sections the first stands for all (`thieves.0`), of stages
    any name (`stages.NAME`)."""
    for name, field in kind.model_fields.items():
        yield (*above, name)
        for section in _sections(field.annotation):
            several = get_origin(field.annotation) is tuple
            entry = ("NAME" if name == "stages" else "0",) if several else ()
            yield from _paths(section, (*above, name, *entry))
    for name, (section, without) in (kind.beside if issubclass(kind, Config) else {}).items():
        yield from ((*above, name, *path) for path in _paths(section) if path[0] not in without)


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    """The configs in an annotation: of a section itself, or of a tuple of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file's settings, unchecked."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no config file {path}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        inside = path / "config.yaml"
        hint = f": give {inside}" if inside.is_file() else ""
        raise UsageError(f"can't read {path}: {error.strerror or error}{hint}") from None
    return yaml_settings(text, str(path))


def yaml_settings(text: str, name: str) -> dict[str, Any]:
    """The settings of a YAML text, unchecked. Raises UsageError where `name` holds none, or one of
    them twice."""
    try:
        values = yaml.load(text, _Strict)
    except _TwiceError as error:
        raise UsageError(f"{name} {error}: one of the two would go unseen") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{name}{line} is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or not values:
        what = "it is empty" if values in (None, {}) else f"but {described(values)}"
        raise UsageError(f"{name} holds no settings, {what}: write them as `teacher: my-teacher`")
    if wrong := [key for key in values if not isinstance(key, str)]:
        raise UsageError(f"{name}: {wrong[0]!r} is no name of a setting")
    return expanded(values)


class _TwiceError(yaml.YAMLError):
    pass


class _Strict(yaml.SafeLoader):
    """Safe, and refuses a name that a mapping holds twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise _TwiceError(f"line {key.start_mark.line + 1} has {key.value!r} again")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def expanded(values: dict[str, Any]) -> dict[str, Any]:
    """Settings in which `data: reviews.csv` is `data: {path: reviews.csv}`."""
    return {
        name: {SHORT[name]: value} if name in SHORT and isinstance(value, str) else value
        for name, value in values.items()
    }


def override(
    values: dict[str, Any], settings: Iterable[str], kind: type[BaseModel] | None = None
) -> dict[str, Any]:
    """`values` with each 'a.b=value' of `settings` put in; values are read as YAML, but for the
    settings of `kind` that are texts: they are what was written (null and nothing unset them)."""
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if given.setdefault(name, text) != text:
            raise UsageError(f"--set {name} is given twice: {given[name]} and {text}")
        if not equals or not all(name.split(".")):
            raise UsageError(f"--set takes name=value (--help has an example); got {setting!r}")
        *sections, last = name.split(".")
        place: Any = values
        if sections[:1] == ["stages"] and not isinstance(values.get("stages"), list):
            raise UsageError(f"--set {name}: this run has one stage: its settings are training.*")
        for section, following in pairwise([*sections, last]):
            if following.isdigit() and isinstance(place, dict) and section not in place:
                raise UsageError(f"--set {name}: {section} is not given: set the whole of it first")
            place = _inside(place, section, name)
        if sections == ["training"] and _set_by_every_stage(values.get("stages"), last):
            raise UsageError(
                f"--set {name}: every stage has its own: set stages.NAME.training.{last}"
            )
        value = _text(text) if kind and _is_text(kind, [*sections, last]) else _value(text)
        if isinstance(place, list):
            place[_position(place, last, name)] = value
        else:
            place[last] = value
        values = expanded(values)
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
        if place.get(section) is None:  # not there, or an empty section
            place[section] = {}
        inner = place[section]
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


def _is_text(kind: type[BaseModel], path: list[str]) -> bool:
    """Whether the setting at `path` is a text and nothing else. Positions and names of stages lead
    to what stands there."""
    kinds: Sequence[type[BaseModel]] = [kind]
    for name in path[:-1]:
        fields = [held.model_fields[name] for held in kinds if name in held.model_fields]
        inner = [section for each in fields for section in _sections(each.annotation)]
        beside = [held.beside[name][0] for held in kinds
                  if issubclass(held, Config) and name in held.beside]  # fmt: skip
        kinds = inner or beside or kinds
    found = [held.model_fields[path[-1]] for held in kinds if path[-1] in held.model_fields]
    return bool(found) and all(
        {*(get_args(each.annotation) or [each.annotation])} <= {str, type(None)} for each in found
    )


def _text(text: str) -> str | None:
    """A text as it was written; its quotes are YAML's."""
    if text.strip() in ("", *NOTHING):
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text.strip()
    return value if isinstance(value, str) else text.strip()


def quoted(name: str, text: str) -> str:
    """name=text as a shell gives it to --set, to be read as just this text."""
    value = json.dumps(text) if _text(text) != text else text
    return shlex.quote(f"{name}={value}")


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
