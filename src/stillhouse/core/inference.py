"""What a model's answers depend on besides its weights: a small file beside them.

`inference.json` stands in a model's folder and beside its ONNX files, so that these and the
tokenizer's files are all that production needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillhouse.core.config import WRITING, DataConfig
from stillhouse.core.errors import ModelError, UsageError
from stillhouse.core.rundir import write_json

FILE = "inference.json"
ANSWERING = ("classification", "regression", "span", *WRITING)  # tasks with an answer for each row


class Inference(BaseModel):
    """How rows become a model's inputs, and its outputs answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    task: str
    labels: list[str] = Field(default=[], description="of a classification, in the head's order")
    max_length: int = Field(description="tokens: longer texts are cut, passages are windows")
    positions: int | None = Field(default=None, description="the most tokens it can read")
    inputs: list[str] = Field(default=["input_ids", "attention_mask"], description="their names")
    pad_id: int = 0
    pair: bool | None = Field(default=None, description="whether rows have a second text")
    separator: str = Field(default="\n", description="between a language model's prompt and answer")
    target_length: int | None = None
    writing: dict[str, Any] = Field(default={}, description="how texts are generated")


def reading(facts: Inference, max_length: int | None) -> Inference:
    """The same with `max_length` tokens, if any are asked for. Raises UsageError for more than the
    model can read."""
    if max_length is None:
        return facts
    if facts.positions is not None and max_length > facts.positions:
        raise UsageError(
            f"--max-length {max_length}: the model reads at most {facts.positions} tokens"
        )
    return facts.model_copy(update={"max_length": max_length})


def value_guessed(task: str, problem: str | None, *, described: bool) -> list[str]:
    """A note where one output is taken for a value because nothing says what it is: neither our
    description (`described`) nor the config's problem_type."""
    if task != "regression" or problem is not None or described:
        return []
    return [
        "the model has one output, which is answered as a value: if it is the logit of a class, "
        'set "problem_type": "multi_label_classification" in its config.json'
    ]


def read_inference(folder: Path) -> Inference | None:
    """What stands beside a model; None where nothing does. Raises ModelError for a broken file."""
    path = folder / FILE
    try:
        return Inference.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[-1] if str(error) else "it is no JSON"
        raise ModelError(f"{path} can't be read ({first.strip()}): save the model again") from None


def write_inference(folder: Path, facts: Inference) -> None:
    write_json(folder / FILE, json.loads(facts.model_dump_json(by_alias=True)))


def default_length(task: str) -> int:
    """The most tokens of a row where nothing says how many a model was trained with."""
    return DataConfig(path="").tokens(task)
