"""Settings of the search for tickets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from stillhouse.core.config import (
    DataConfig,
    DistillConfig,
    GoldConfig,
    Margin,
    Metric,
    TrainingConfig,
)
from stillhouse.core.terms import Config, Positive

Score = Literal["magnitude", "movement", "gradient", "fisher", "random"]
Control = Literal["random", "reinitialised"]
Part = Literal["layers", "heads", "neurons"]
OF_THE_REMOVAL = ("teacher", "student", "data")  # which a recovery has from it


def _several(given: object) -> object:
    """One pattern is a list of one."""
    return (given,) if isinstance(given, str) else given


class PruneConfig(Config):
    """Which weights go, how many in each round, and what the survivors are reset to.

    sparsity: the share that is gone after the last of `rounds` (1: one shot). A geometric schedule
    prunes the same share of the survivors each round (Frankle & Carbin 2019), a linear one the
    same share of the original weights (Chen et al. 2020). scope: the lowest scores of all weights
    together, or of each layer by itself. output_rate: the share of the rate at which the output
    layer is pruned, where that is prunable. floor: what every matrix keeps at least in a global
    pruning, as a share of what all keep on average: one whose weights are all small would vanish,
    and cut the model in two (0: let it). include, exclude: patterns of weights' names
    (bert.encoder.*.query.weight) instead of what is usual for the model. rewind: the step of the
    first training whose weights the survivors are reset to, with the learning rate's schedule and
    the order of the data; none: they go on from where they are. score_rows: training rows that
    the gradient and fisher scores are taken on.
    """

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.7
    rounds: Positive = 7
    schedule: Literal["geometric", "linear"] = "geometric"
    score: Score = "magnitude"
    scope: Literal["global", "layer"] = "global"
    output_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    include: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    exclude: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    rewind: Annotated[int, Field(ge=0)] | Literal["none"] = 0
    score_rows: Positive = 512

    @field_validator("sparsity", mode="before")
    @classmethod
    def _share(cls, given: object) -> object:
        if isinstance(given, int | float) and not 0 < given < 1:
            raise ValueError(f"a share over 0 and under 1, such as 0.6, not {given:g}")
        return given

    @field_validator("rewind", mode="before")
    @classmethod
    def _step_or_none(cls, given: object) -> object:
        if isinstance(given, str) and given != "none" and not given.isdigit():
            raise ValueError(f"a step of the training (0 is its start) or none, not {given!r}")
        return given


class TicketEvaluationConfig(Config):
    """What tickets are compared with. controls: random masks of the same density in each layer,
    and the ticket's mask on fresh weights; the dense model is always one. margin: as a
    distillation's."""

    metric: Metric | None = None
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2])
    controls: tuple[Control, ...] = ("random", "reinitialised")
    controls_at: Literal["last", "all"] = "last"
    margin: Margin = None
    resamples: Annotated[int, Field(ge=2)] = 2000

    @model_validator(mode="after")
    def _distinct(self) -> TicketEvaluationConfig:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {self.seeds}")
        return self


class TicketTraining(TrainingConfig):
    """Tickets are trained to the end: weights of the last step are what is pruned."""

    select: Literal["best", "last"] = "last"


class TicketsConfig(GoldConfig):
    flow: Literal["tickets"] = "tickets"
    training: TicketTraining = TicketTraining()  # pyright: ignore[reportIncompatibleVariableOverride]
    prune: PruneConfig = PruneConfig()
    evaluation: TicketEvaluationConfig = TicketEvaluationConfig()


class TransferConfig(Config):
    """`runs`: finished searches, each a source and a target. Axes of the matrix in their order.
    margin: as a distillation's."""

    flow: Literal["transfer"] = "transfer"
    runs: tuple[str, ...]
    seeds: list[int] | None = None
    margin: Margin = None
    resamples: Annotated[int, Field(ge=2)] = 2000

    @field_validator("runs")
    @classmethod
    def _several_runs(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        if len(runs) < 2:
            raise ValueError("give the folders of at least two finished searches")
        return runs


class RemoveConfig(Config):
    """What is cut out of a fine-tuned model, and how far.

    One target: speedup (of the median latency, in `runtime`, at `batch` rows), parameters (the
    share of all parameters that stays), or explicit counts: layers, and heads and neurons a layer.
    what: which parts may go. A part's worth is scored on `score_rows` rows of the training data;
    nothing held out or reported is looked at. refit: on the same rows, what stays of a layer is
    solved for, so that its output changes least.
    """

    beside: ClassVar[Mapping[str, tuple[type[Config], tuple[str, ...]]]] = {
        "recover": (DistillConfig, OF_THE_REMOVAL)
    }
    flow: Literal["remove"] = "remove"
    task: Literal["auto", "classification", "regression"] = "auto"
    model: str
    data: DataConfig
    what: Annotated[tuple[Part, ...], Field(min_length=1)] = ("layers", "heads", "neurons")
    speedup: Annotated[float, Field(gt=1)] | None = None
    parameters: Annotated[float, Field(gt=0, lt=1)] | None = None
    layers: Positive | None = None
    heads: Positive | None = None
    neurons: Positive | None = None
    runtime: Literal["torch", "onnx", "onnx-int8"] = "onnx-int8"
    batch: Positive = 1
    score_rows: Positive = 512
    refit: bool = True
    cache: str | None = None
    trust_remote_code: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _one_target(self) -> RemoveConfig:
        counts = any(value is not None for value in (self.layers, self.heads, self.neurons))
        targets = [self.speedup is not None, self.parameters is not None, counts]
        if sum(targets) != 1:
            raise ValueError("give one target: speedup, parameters, or counts (layers, heads, ...)")
        return self
