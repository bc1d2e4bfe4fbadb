"""What goes over the wire: questions, answers, errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stillhouse.core.types import Example


class Question(BaseModel):
    """One question (text, and pair where the task has one) or many (texts, pairs)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "a lovely film"},
                {"texts": ["a lovely film", "a dull one"]},
                {"text": "Who wrote it?", "pair": "It was written by Ann Lee."},
            ]
        },
    )

    text: str | None = None
    pair: str | None = None
    texts: list[str] | None = Field(None, fail_fast=True)  # of a million numbers, one is told
    pairs: list[str | None] | None = Field(None, fail_fast=True)

    @model_validator(mode="after")
    def _one_form(self) -> Question:
        if (self.text is None) == (self.texts is None):
            raise ValueError("give text, or texts")
        if self.text is None and self.pair is not None:
            raise ValueError("with texts go pairs, not pair")
        if self.pairs is not None and (self.texts is None or len(self.pairs) != len(self.texts)):
            raise ValueError("pairs are as many as texts")
        return self

    def examples(self) -> list[Example]:
        if self.text is not None:
            return [Example(self.text, self.pair)]
        assert self.texts is not None
        pairs = self.pairs or [None] * len(self.texts)
        return [Example(text, pair) for text, pair in zip(self.texts, pairs, strict=True)]


class Answer(BaseModel):
    """What the service shows of an answer."""

    label: str | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    text: str | None = None


class Answers(BaseModel):
    answers: list[Answer]


class Trouble(BaseModel):
    error: str


class Usage(BaseModel):
    """What a client was charged so far (with what its workers hold ready). tokens: those that the
    model reads, all windows of a passage."""

    questions: int
    tokens: int
    money: float
    currency: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Trouble, "description": said}
    for status, said in {
        401: "no valid key",
        402: "the budget is spent",
        403: "another role's key",
        413: "the request is too large",
        415: "the body is compressed, or Content-Type is not application/json",
        422: "no question",
        429: "the rate is exceeded, or too much of yours waits; Retry-After says for how long",
        503: "the registry can't be reached, too many wait, or there was no time for an answer",
    }.items()
}
