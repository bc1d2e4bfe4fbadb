"""Settings of an objective's terms, and what all configs are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
AUTO = "auto"
Precision = Literal["auto", "bf16", "float32"]  # auto: the faster on this machine (core/precision)


class Config(BaseModel):
    """on_cpu: whether its precision is of models that are asked on the CPU, wherever others are
    trained (see core/precision). beside: sections that a file may hold with it and that are another
    config's, by name, and what these may not set."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )
    on_cpu: ClassVar[bool] = False
    beside: ClassVar[Mapping[str, tuple[type[Config], tuple[str, ...]]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _at_home(cls, values: Any) -> Any:
        """~/ is the user's folder, as it is to a shell."""
        if not isinstance(values, dict):
            return values
        homely = {k: v for k, v in values.items() if isinstance(v, str) and v.startswith("~/")}
        return {**values, **{k: str(Path(v).expanduser()) for k, v in homely.items()}}


class Schedule(Config):
    """A value that moves from `start` to `end` over the run's steps."""

    shape: Literal["constant", "linear", "cosine"] = "constant"
    start: float
    end: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return {"start": value} if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _needs_end(self) -> Schedule:
        if self.shape != "constant" and self.end is None:
            raise ValueError(f"a {self.shape} schedule needs 'end'")
        return self


class TermConfig(Config):
    """One term of the objective.

    soft: a divergence between teacher and student at a temperature, times T^2 (T for total
    variation). Left open it is forward_kl; of a regression, which has no other, logit_mse, taken
    of the raw scores, whatever the temperature. variant reference: divided by the number of
    choices, as the code of PKD and TinyBERT does.
    hard: cross-entropy with the teacher's choice. gold: the data's own labels, where it has them.
    """

    kind: Literal["soft", "hard", "gold"]
    weight: Schedule = Schedule(start=1.0)
    divergence: str | None = None
    temperature: Schedule = Schedule(start=1.0)
    squared_temperature: bool = True
    standardise: bool = False
    beta: float | None = None
    alpha: float | None = None
    variant: Literal["paper", "reference"] = "paper"


Pairs = list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]]


class InnerTermConfig(Config):
    """A term between inner layers of the student and of the teacher.

    layers: which student layer learns from which of the teacher's. uniform: m from m L_T / L_S;
    top: m from m + L_T - L_S; bottom: m from m; skip and last: as uniform and top without the
    student's last layer; final: last from last; or pairs [student, teacher], from 1 (0: the
    embeddings). Left out: what the term's paper uses.
    projection: a learnt matrix from the student's width to the teacher's, trained along and thrown
    away. auto: where the widths differ.
    variant: where a paper and its code differ. heads, of: for relations. normalise: for patience.
    """

    kind: Literal[
        "hint",
        "patience",
        "embedding",
        "hidden",
        "attention",
        "attention_kl",
        "relations",
        "cosine",
        "gram",
    ]
    weight: Schedule = Schedule(start=1.0)
    variant: Literal["paper", "reference"] = "paper"
    layers: Literal["uniform", "top", "bottom", "skip", "last", "final"] | Pairs | None = None
    projection: Literal["auto", "always", "never"] | None = None
    of: tuple[Literal["queries", "keys", "values"], ...] | None = None
    heads: Positive | None = None
    normalise: bool | None = None


RESPONSE = get_args(TermConfig.model_fields["kind"].annotation)
INNER = get_args(InnerTermConfig.model_fields["kind"].annotation)


def _kind(term: Any) -> str | None:
    kind = term.get("kind") if isinstance(term, dict) else getattr(term, "kind", None)
    return "response" if kind in RESPONSE else "inner" if kind in INNER else None


AnyTerm = Annotated[
    Annotated[TermConfig, Tag("response")] | Annotated[InnerTermConfig, Tag("inner")],
    Discriminator(
        _kind,
        custom_error_type="term_kind",
        custom_error_message="a term needs a kind that is known",
    ),
]
