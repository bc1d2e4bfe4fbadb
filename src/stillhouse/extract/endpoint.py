"""Any JSON API as a victim: a small description of its requests and of where its answers are.

A key comes from the environment and is written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import Field, field_validator, model_validator

from stillhouse.core.errors import UsageError
from stillhouse.core.settings import parse, read_yaml
from stillhouse.core.terms import Config, Positive
from stillhouse.core.types import Example

PLAIN = {"accept", "accept-encoding", "accept-language", "content-type", "user-agent"}
SHORTEST = 8  # characters of a word that may be a key, where it isn't said to be one
KEY = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")


class Reading(Config):
    """Where in an answer is what, as JMESPath. `answers`: the list of them, one a text (left out:
    a request has one text, and the whole is its answer); the others are looked up in each.
    probabilities: an object of them by label, or with `labels` a list, beside that of labels; with
    `label`, answers that have none are labels only."""

    answers: str | None = None
    probabilities: str | None = None
    labels: str | None = None
    label: str | None = None
    value: str | None = None
    text: str | None = None

    @field_validator("*")
    @classmethod
    def _path(cls, path: str | None) -> str | None:
        try:
            if path is not None:
                jmespath.compile(path)
        except JMESPathError as error:
            raise ValueError(f"{path!r} is no JMESPath: {str(error).splitlines()[0]}") from None
        return path

    @model_validator(mode="after")
    def _something(self) -> Reading:
        if not (self.probabilities or self.label or self.value or self.text):
            raise ValueError("say where the probabilities, label, value or text are")
        return self


class Endpoint(Config):
    """A JSON API. In `body`, "{text}" and "{pair}" stand for a query's texts, and where `batch` is
    over 1, "{texts}" and "{pairs}" for lists of them, or a list's item is made for each; $NAME in
    a header is from the environment. choices: all labels, where answers don't name them all."""

    url: str
    method: Literal["POST", "PUT"] = "POST"
    headers: dict[str, str] = Field(default_factory=dict)
    body: Any
    read: Reading
    choices: tuple[str, ...] | None = None
    batch: Positive = 1
    parallel: Positive = 1
    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    retries: Annotated[int, Field(ge=0)] = 6

    @field_validator("url")
    @classmethod
    def _web(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("an address begins with http:// or https://")
        return url

    @model_validator(mode="after")
    def _asks(self) -> Endpoint:
        if self.batch > 1 and not _asks_many(self.body):
            raise ValueError(
                'with batch over 1 the body has "{texts}", or a list with "{text}" in it'
            )
        if "{text" not in json.dumps(self.body):
            raise ValueError('the body has no "{text}"')
        if self.batch > 1 and self.read.answers is None:
            raise ValueError("with batch over 1, read.answers says where the list of answers is")
        return self

    @property
    def identity(self) -> str:
        """Stands for whom is asked, and how: neither keys nor pace are part of it, nor how answers
        are read, which may be put right when they are paid."""
        return _digest([self.url, self.method, self.body])

    @property
    def fingerprint(self) -> str:
        """Stands for the answers as they are read, too."""
        return _digest([self.identity, self.read.model_dump(mode="json"), self.choices])

    @property
    def place(self) -> str:
        """The address as it may be shown: a user, a password and a query may be secrets."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def secrets(self) -> list[str]:
        """What no message and no file may have, longest first: what headers, whether from the
        environment or from the description, say of who asks, and the like in the address."""
        parts, words = urlsplit(self.url), []
        found = [parts.password]
        for name, text in self.headers.items():
            found += [os.environ.get(each) for each in KEY.findall(text)]
            if name.lower() not in PLAIN:
                words += KEY.sub(lambda each: os.environ.get(each[1], ""), text).split()
        words += [parts.username or "", *(value for _, value in parse_qsl(parts.query))]
        found += [each for each in words if len(each) >= SHORTEST]
        return sorted({each for each in found if each}, key=len, reverse=True)

    def keyed(self) -> dict[str, str]:
        """The headers with what the environment has. Raises UsageError for what it lacks, and for
        what no header can have."""

        def held(found: re.Match[str]) -> str:
            value = os.environ.get(found[1])
            if not value:
                raise UsageError(
                    f"{found[1]} is not in the environment: export it, for {self.place}"
                )
            return value

        made = {name: KEY.sub(held, text) for name, text in self.headers.items()}
        for name, text in made.items():
            if not text.isascii() or not text.isprintable():
                raise UsageError(
                    f"the header {name} has a line break, or what is not ASCII: put it right, for "
                    f"{self.place}"
                )
        return made


class Masks:
    """Takes keys out of what an API says, however it writes them."""

    def __init__(self, secrets: Sequence[str]) -> None:
        forms = [_in_any_form(each) for each in sorted(secrets, key=len, reverse=True)]
        self._found = re.compile("|".join(forms)) if forms else None

    def text(self, text: str) -> str:
        return text if self._found is None else self._found.sub("***", text)

    def value(self, value: Any) -> Any:
        """A JSON value with none of them in its texts and names."""
        if self._found is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(each) for each in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(each) for name, each in value.items()}
        return value


def _in_any_form(secret: str) -> str:
    """A pattern of a text as it is, or any part of it escaped as in JSON or in an address."""

    def one(letter: str) -> str:
        coded = "".join(f"%{byte:02x}" for byte in letter.encode())
        return rf"(?:\\*{re.escape(letter)}|(?i:{coded}|\\+u{ord(letter):04x}))"

    return "".join(map(one, secret))


def read_endpoint(path: Path) -> Endpoint:
    """The description in a YAML file. Raises UsageError."""
    values = read_yaml(path)
    try:
        return parse(Endpoint, values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def filled(endpoint: Endpoint, batch: Sequence[Example]) -> Any:
    """The body with the queries in it."""
    whole = {"{texts}": [e.text for e in batch], "{pairs}": [e.pair for e in batch]}
    one = {"{text}": batch[0].text, "{pair}": batch[0].pair}

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fill(inner) for name, inner in value.items()}
        if isinstance(value, list):
            if endpoint.batch > 1 and any(_asks(inner) for inner in value):
                return [_each(inner, e) for e in batch for inner in value]
            return [fill(inner) for inner in value]
        if isinstance(value, str):
            if value in whole:
                return whole[value]
            return _each(value, batch[0]) if value not in one else one[value]
        return value

    return fill(endpoint.body)


def _asks_many(body: Any) -> bool:
    """Whether a body has a place for several queries."""
    if isinstance(body, dict):
        return any(map(_asks_many, body.values()))
    if isinstance(body, list):
        return any(map(_asks, body)) or any(map(_asks_many, body))
    return body == "{texts}"


def _asks(value: Any) -> bool:
    written = json.dumps(value)
    return "{text}" in written or "{pair}" in written


def _each(value: Any, example: Example) -> Any:
    """A value with one query's texts in it."""
    if isinstance(value, dict):
        return {name: _each(inner, example) for name, inner in value.items()}
    if isinstance(value, list):
        return [_each(inner, example) for inner in value]
    if isinstance(value, str):
        if value == "{pair}":
            return example.pair
        parts = re.split(r"(\{text\}|\{pair\})", value)  # a text may hold "{pair}" itself
        put = {"{text}": example.text, "{pair}": example.pair or ""}
        return "".join(put.get(part, part) for part in parts)
    return value
