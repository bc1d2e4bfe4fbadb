"""Settings of an audit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.core.config import (
    DataConfig,
    LabelConfig,
    Margin,
    Metric,
    StudentConfig,
    TrainingConfig,
)
from stillhouse.core.terms import Config, Positive, Share
from stillhouse.extract.prices import Tariff
from stillhouse.extract.views import View

VOCABULARY = 10_000  # top words: what nonsense is made of, and what sentences are reduced to

Kind = Literal["random", "frequency", "wiki", "shuffled", "pool"]
Form = Literal["single", "edited", "shuffled-pair", "question", "yes-no"]
Selection = Literal["random", "uncertainty", "k-centre", "both"]


class QueriesConfig(Config):
    """What is asked. budgets: in training sets' sizes; `of`: that size (left out: the data's own).
    corpus: a text file, a folder of them or a hub data set; left out, the documentation strings
    of Python's library. pool: rows of one's own, for the kind of that name. form: how pairs are
    made; auto: single texts, or where the data has pairs, edited ones. passage: which of the two
    texts of a question is the passage. fresh: every seed asks queries of its own; else all learn
    from one draw, which costs an API less, and intervals don't cover the draw. choose: also choose
    what to ask with the thief one has, among `candidates` times the largest budget."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("wiki", "random")
    budgets: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        0.1,
        0.2,
        0.5,
        1.0,
    )
    of: Positive | None = None
    form: Form | Literal["auto"] = "auto"
    passage: Literal["text", "pair"] = "pair"
    corpus: str | None = None
    pool: str | None = None
    fresh: bool = True
    choose: tuple[Literal["uncertainty", "k-centre", "both"], ...] = ()
    candidates: Annotated[float, Field(ge=1)] = 3.0
    vocabulary: Positive = VOCABULARY

    @model_validator(mode="after")
    def _rising(self) -> QueriesConfig:
        if sorted(set(self.budgets)) != list(self.budgets):
            listed = ",".join(f"{each:g}" for each in sorted(set(self.budgets)))
            raise ValueError(f"budgets rise: give them as {listed}")
        if ("pool" in self.kinds) != (self.pool is not None):
            raise ValueError("queries of the kind pool and the setting queries.pool go together")
        return self


class ThiefTraining(TrainingConfig):
    """As published: three epochs, the last step's weights, no gold label to select by."""

    select: Literal["best", "last"] = "last"


class ThiefConfig(StudentConfig):
    """What the stranger trains: a public pretrained model (`model`), or a shape of one (`source`
    and layers, width, ...; `fresh`: nothing of its weights)."""

    name: str | None = None
    training: ThiefTraining = ThiefTraining()

    @model_validator(mode="after")
    def _public(self) -> ThiefConfig:
        if self.model is None and self.source is None:
            raise ValueError("a thief has none of the victim's weights: give its model or source")
        return self


class AuditEvaluationConfig(Config):
    """margin: as a distillation's."""

    metric: Metric | None = None
    margin: Margin = None
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2])
    resamples: Annotated[int, Field(ge=2)] = 2000

    @model_validator(mode="after")
    def _distinct(self) -> AuditEvaluationConfig:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {self.seeds}")
        return self


class AuditConfig(Config):
    """How good a copy of `victim` a stranger gets. The first view and the first thief are met with
    every kind and budget of queries; further views and thieves with the first kind only, but with
    `cross` each with each.

    victim: a model's folder, or the YAML description of an API. views: what of its answers is
    shown (left out: probabilities, then the label only; a regression's value; a span's text).
    limit: queries that an API may be asked in all. enough: the share of the victim's score that
    counts as a copy.
    """

    flow: Literal["audit"] = "audit"
    task: Literal["auto", "classification", "regression", "span"] = "auto"
    victim: str
    data: DataConfig
    queries: QueriesConfig = QueriesConfig()
    views: tuple[str, ...] = ()
    thieves: Annotated[tuple[ThiefConfig, ...], Field(min_length=1)]
    cross: bool = False
    tariff: Tariff = Tariff()
    limit: Positive | None = None
    enough: Share = 0.95
    label: LabelConfig = LabelConfig()
    evaluation: AuditEvaluationConfig = AuditEvaluationConfig()
    cache: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that make an audit this one: its limit may be raised, and it goes on."""
        return self.model_dump(mode="json", exclude={"limit"})

    def shown(self, task: str) -> tuple[str, ...]:
        """The views of a victim of this task."""
        usual = {"regression": ("value",), "span": ("text",)}
        return self.views or usual.get(task, ("probabilities", "label"))

    @field_validator("views")
    @classmethod
    def _views(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(View.read(name).name for name in names)
