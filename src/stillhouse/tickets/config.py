"""Settings of the search for tickets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillhouse.core.config import GoldConfig, TrainingConfig
from stillhouse.core.terms import Config, Positive

Score = Literal["magnitude", "movement", "gradient", "fisher", "random"]
Control = Literal["random", "reinitialised"]


class PruneConfig(Config):
    """Which weights go, how many in each round, and what the survivors are reset to.

    sparsity: the share that is gone after the last of `rounds` (1: one shot). A geometric schedule
    prunes the same share of the survivors each round (Frankle & Carbin 2019), a linear one the
    same share of the original weights (Chen et al. 2020). scope: the lowest scores of all weights
    together, or of each layer by itself. output_rate: the share of the rate at which the output
    layer is pruned, where that is prunable. include, exclude: patterns of weights' names
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
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rewind: Annotated[int, Field(ge=0)] | Literal["none"] = 0
    score_rows: Positive = 512


class TicketProofConfig(Config):
    """What tickets are compared with. controls: random masks of the same density in each layer,
    and the ticket's mask on fresh weights; the dense model is always one."""

    metric: Literal["accuracy", "macro_f1", "matthews", "pearson", "spearman"] | None = None
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2])
    controls: tuple[Control, ...] = ("random", "reinitialised")
    controls_at: Literal["last", "all"] = "last"
    resamples: Annotated[int, Field(ge=2)] = 2000

    @model_validator(mode="after")
    def _distinct(self) -> TicketProofConfig:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {self.seeds}")
        return self


# Tickets are trained to the end: weights of the last step are what is pruned.
TRAINING = TrainingConfig(select="last")


class TicketsConfig(GoldConfig):
    flow: Literal["tickets"] = "tickets"
    training: TrainingConfig = TRAINING
    prune: PruneConfig = PruneConfig()
    proof: TicketProofConfig = TicketProofConfig()


class TransferConfig(Config):
    """`runs`: finished searches, each a source and a target. Axes of the matrix in their order."""

    flow: Literal["transfer"] = "transfer"
    runs: Annotated[tuple[str, ...], Field(min_length=2)]
    seeds: list[int] | None = None
    resamples: Annotated[int, Field(ge=2)] = 2000
