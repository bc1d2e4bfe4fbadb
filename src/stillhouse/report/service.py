"""How to ask a service, from its OpenAPI description: a page without script or network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.report.environment import environment


@dataclass(frozen=True)
class Part:
    """A member of a body: its name, what it may be, and whether it must be there."""

    name: str
    kind: str
    needed: bool


@dataclass(frozen=True)
class Call:
    """One way to ask. examples: bodies as JSON; responses: status and what it means."""

    method: str
    path: str
    about: str
    keyed: bool
    asked: Sequence[Part]
    examples: Sequence[str]
    answered: Sequence[Part]
    responses: Sequence[tuple[str, str]]


def render_service(schema: Mapping[str, Any]) -> str:
    """The page as HTML."""
    template = environment().get_template("service.html.j2")
    return template.render(info=schema["info"], calls=list(_calls(schema)))


def _calls(schema: Mapping[str, Any]) -> Iterator[Call]:
    for path, methods in schema["paths"].items():
        for method, held in methods.items():
            asked = _body(schema, held.get("requestBody", {}))
            responses = held.get("responses", {})
            yield Call(
                method.upper(),
                path,
                held.get("description", ""),
                bool(held.get("security")),
                list(_parts(schema, asked)),
                [json.dumps(each, ensure_ascii=False) for each in asked.get("examples", ())],
                list(_parts(schema, _body(schema, responses.get("200", {})))),
                [(status, each.get("description", "")) for status, each in responses.items()],
            )


def _body(schema: Mapping[str, Any], held: Mapping[str, Any]) -> Mapping[str, Any]:
    """The form of a request's or a response's JSON; empty where it has none."""
    return _form(schema, held.get("content", {}).get("application/json", {}).get("schema", {}))


def _form(schema: Mapping[str, Any], held: Mapping[str, Any]) -> Mapping[str, Any]:
    """A form, or the one that it refers to."""
    name = str(held.get("$ref", "")).rpartition("/")[2]
    return schema["components"]["schemas"].get(name, {}) if name else held


def _parts(schema: Mapping[str, Any], form: Mapping[str, Any], within: str = "") -> Iterator[Part]:
    needed = form.get("required", ())
    for name, held in form.get("properties", {}).items():
        yield Part(within + name, _kind(held), name in needed)
        items = _form(schema, held.get("items", {}))
        if "properties" in items:
            yield from _parts(schema, items, f"{within}{name}[].")


def _kind(held: Mapping[str, Any]) -> str:
    """What a member may be, in words."""
    if "anyOf" in held:
        return " or ".join(_kind(each) for each in held["anyOf"])
    if "$ref" in held:
        return "object"
    kind = str(held.get("type", "anything"))
    if kind == "array":
        return f"list of {_kind(held.get('items', {}))}"
    if kind == "object" and isinstance(held.get("additionalProperties"), dict):
        return f"object of {_kind(held['additionalProperties'])}s"
    return kind
