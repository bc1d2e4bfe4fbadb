"""The types that the parts of the flow pass to each other.

    data -> source.signal(batch) -> objective(student(batch), signal) -> loop

Axes: N scored rows, K choices, B examples, T tokens, H hidden, A heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.core.errors import RunError, unknown
from stillhouse.core.head import Factored

NO_LABEL = -100


@dataclass(frozen=True)
class Batch:
    """Examples as tensors: a model's inputs, who they are, and gold answers where there are any."""

    inputs: Mapping[str, Tensor]
    rows: Int[np.ndarray, " B"]  # positions in the data set, for looking signals up
    gold_N: Tensor | None = (
        None  # long with NO_LABEL where unlabelled; float with NaN in regression
    )
    scored_N: Tensor | None = None  # where a row is a token: its place in B x T, flat
    answerable_BT: Tensor | None = None  # where a span may begin or end

    @property
    def scored(self) -> int:
        """How many scored rows a step has: examples, tokens, or both ends of spans."""
        if self.scored_N is not None:
            return len(self.scored_N)
        return len(self.rows) * (1 if self.answerable_BT is None else 2)

    def part(self, rows: slice) -> Batch:
        """What the terms see of some scored rows: their gold answers."""
        return Batch({}, self.rows, None if self.gold_N is None else self.gold_N[rows])

    def to(self, device: torch.device) -> Batch:
        if all(tensor.device == device for tensor in self.inputs.values()):
            return self
        move = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        gold, scored, answerable = (
            None if tensor is None else tensor.to(device, non_blocking=True)
            for tensor in (self.gold_N, self.scored_N, self.answerable_BT)
        )
        return Batch(move, self.rows, gold, scored, answerable)


What = Literal["hidden", "queries", "keys", "values", "scores", "probabilities", "module"]


@dataclass(frozen=True, order=True)
class Tap:
    """A place inside a model: something of block `layer` (from 1; hidden 0: what the embeddings
    give to the first block), or the output of the module of a dotted `name`. A norm after the last
    block, as ModernBERT has, is a module of its own. Raises ValueError for a place there is not.

    hidden: B x T x H. queries, keys, values: B x A x T x D, as they are multiplied (with rotary
    positions applied). scores: B x A x T x T, queries x keys, scaled, before the softmax; those
    of padded keys have no meaning. probabilities: the softmax of the masked scores, before dropout.
    """

    what: What
    layer: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise ValueError(unknown("tap", self.what, get_args(What)))
        if not isinstance(self.layer, int):
            raise ValueError(f"a tap's layer is a number from 0, got {self.layer!r}")
        if (self.what == "module") != bool(self.name):
            raise ValueError('a module is read by its name: Tap("module", name="bert.pooler")')


@dataclass(frozen=True)
class States:
    """What was read inside a model, and which tokens are real."""

    found: Mapping[Tap, Tensor]
    mask_BT: Tensor  # bool

    def __getitem__(self, tap: Tap) -> Tensor:
        return self.found[tap]


@dataclass(frozen=True)
class StudentOutput:
    """A model's outputs as N scored rows over K choices (K = 1: a regression's value), and what
    was read inside it. Over a large vocabulary the scores may not be multiplied out."""

    scores: Float[Tensor, "N K"] | Factored
    states: States | None = None

    @property
    def scores_NK(self) -> Float[Tensor, "N K"]:
        return self.scores.dense() if isinstance(self.scores, Factored) else self.scores

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, rows: slice) -> StudentOutput:
        """Some of the scored rows."""
        if isinstance(self.scores, Factored):
            return StudentOutput(self.scores.part(rows).dense())
        return StudentOutput(self.scores[rows])

    @property
    def width(self) -> int:
        return self.scores.width if isinstance(self.scores, Factored) else self.scores.shape[1]


@dataclass(frozen=True)
class Dense:
    """Scores of every choice, as the teacher gave them, and what was read inside it.

    `taught_N`: the rows the teacher speaks on, where it is not all of them."""

    scores_NK: Float[Tensor, "N K"]
    states: States | None = None
    taught_N: Bool[Tensor, " N"] | None = None

    def part(self, rows: slice) -> Dense:
        return Dense(self.scores_NK[rows], None, _rows(self.taught_N, rows))

    def __post_init__(self) -> None:
        if not torch.isfinite(self.scores_NK).all():
            bad = int((~torch.isfinite(self.scores_NK)).any(-1).sum())
            raise RunError(
                f"the teacher's answers are not finite in {bad} of {len(self.scores_NK)} rows: "
                "check its weights, or label again with --set label.precision=float32"
            )


@dataclass(frozen=True)
class Unscored:
    """A teacher's scores that are not multiplied out: `Dense`, part by part."""

    factored: Factored
    states: States | None = None
    taught_N: Bool[Tensor, " N"] | None = None

    def part(self, rows: slice) -> Dense:
        return Dense(self.factored.part(rows).dense(), None, _rows(self.taught_N, rows))


Estimator = Literal["tail", "sampled", "renormalised"]


@dataclass(frozen=True)
class Sparse:
    """Part of a teacher's distribution over K choices: of each row its likeliest choices with
    their probabilities, and choices drawn from the rest, each standing for an equal share of it.

    top_p_NT and tail_N, the rest's probability, add up to 1; a place of the top that is not used
    has probability 0 (and any id). Of drawn_ids_ND each stands for tail_N / D. `estimator` says
    what is made of them: tail (the rest is one class), sampled (unbiased in the gradient of
    forward_kl), renormalised (the rest is left out, and the top made to add up to 1). The
    probabilities are those at `temperature`.
    """

    top_ids_NT: Int[Tensor, "N T"]
    top_p_NT: Float[Tensor, "N T"]
    tail_N: Float[Tensor, " N"]
    drawn_ids_ND: Int[Tensor, "N D"]
    estimator: Estimator
    temperature: float = 1.0
    states: States | None = None
    taught_N: Bool[Tensor, " N"] | None = None

    def part(self, rows: slice) -> Sparse:
        return replace(
            self,
            top_ids_NT=self.top_ids_NT[rows],
            top_p_NT=self.top_p_NT[rows],
            tail_N=self.tail_N[rows],
            drawn_ids_ND=self.drawn_ids_ND[rows],
            states=None,
            taught_N=_rows(self.taught_N, rows),
        )


@dataclass(frozen=True)
class Labels:
    """The teacher's choice only: what a label-only teacher gives."""

    labels_N: Int[Tensor, " N"]
    states: States | None = None
    taught_N: Bool[Tensor, " N"] | None = None

    def part(self, rows: slice) -> Labels:
        return Labels(self.labels_N[rows], None, _rows(self.taught_N, rows))


Signal = Dense | Unscored | Sparse | Labels | States


def _rows(values_N: Tensor | None, rows: slice) -> Tensor | None:
    return None if values_N is None else values_N[rows]


Unit = Literal["scored", "examples"]  # what a term is a mean over: scored rows, or whole texts


def states_of(signal: Signal | None) -> States:
    """What was read inside the teacher."""
    found = signal if isinstance(signal, States) or signal is None else signal.states
    assert found is not None, "the source reads what the objective needs"
    return found


@dataclass(frozen=True)
class SumCount:
    """A sum over rows and how many they were. The loop divides, once per optimizer step."""

    sum: Float[Tensor, ""]
    count: int


@runtime_checkable
class SignalSource(Protocol):
    @property
    def kind(self) -> type[Dense] | type[Sparse] | type[Labels] | type[States]: ...
    @property
    def fingerprint(self) -> str: ...

    def signal(self, batch: Batch) -> Signal: ...


@dataclass(frozen=True)
class Predictions:
    """A model's answers to a whole split: class ids (values in regression), and probabilities."""

    answers_N: np.ndarray
    probabilities_NK: np.ndarray | None
    gold_N: np.ndarray
    logp_N: np.ndarray | None = None  # log-probability of the gold answer, nats, where that is all
    confidence_N: np.ndarray | None = None  # of the likeliest choice, where only that is kept
    right_N: np.ndarray | None = None  # whether that is right
    more: Mapping[str, float] = field(default_factory=dict)  # metrics found on the way


@dataclass(frozen=True)
class Example:
    text: str
    pair: str | None = None
    label: str | float | None = None
    group: str | None = None  # its language or task, where a run is told apart by it


@dataclass
class LoopState:
    """What callbacks see, after each optimizer step."""

    step: int
    steps: int
    epoch: float
    model: torch.nn.Module
    metrics: dict[str, object] = field(default_factory=dict)
    stop: bool = False


Callback = Callable[[LoopState], None]
