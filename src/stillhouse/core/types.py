"""The types that the parts of the flow pass to each other.

    data -> source.signal(batch) -> objective(student(batch), signal) -> loop

Axes: N scored rows, K choices, B examples, T tokens, H hidden, A heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.core.errors import RunError, unknown

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
    was read inside it."""

    scores_NK: Float[Tensor, "N K"]
    states: States | None = None


@dataclass(frozen=True)
class Dense:
    """Scores of every choice, as the teacher gave them, and what was read inside it."""

    scores_NK: Float[Tensor, "N K"]
    states: States | None = None

    def __post_init__(self) -> None:
        if not torch.isfinite(self.scores_NK).all():
            bad = int((~torch.isfinite(self.scores_NK)).any(-1).sum())
            raise RunError(
                f"the teacher's answers are not finite in {bad} of {len(self.scores_NK)} rows: "
                "check its weights, or label again with --set label.precision=float32"
            )


@dataclass(frozen=True)
class Labels:
    """The teacher's choice only: what a label-only teacher gives."""

    labels_N: Int[Tensor, " N"]
    states: States | None = None


Signal = Dense | Labels | States


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
    def kind(self) -> type[Dense] | type[Labels] | type[States]: ...
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


@dataclass(frozen=True)
class Example:
    text: str
    pair: str | None = None
    label: str | float | None = None


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
