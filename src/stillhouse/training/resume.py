"""Where a training is, and everything that a checkpoint of it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from stillhouse.training import checkpoint
from stillhouse.training.optim import Optimizer


@runtime_checkable
class Kept(Protocol):
    """What changes as a run goes on: a checkpoint holds its state, as JSON."""

    def state(self) -> dict[str, Any]: ...
    def load(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Position:
    """Where a run is. These facts, the tensors and the kept parts are all that must be held."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    last_score: float | None = None
    since_best: int = 0
    examples: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """What trains: a checkpoint holds the tensors of each."""

    model: nn.Module
    bridges: nn.Module
    optimizer: Optimizer
    kept: Mapping[str, Kept]

    def states(self) -> dict[str, Any]:
        return {name: part.state() for name, part in self.kept.items()}

    def save(self, path: Path, position: Position, best: Mapping[str, Tensor]) -> None:
        """Raises RunError if it can't be written."""
        tensors = {f"model|{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"bridges|{k}": v for k, v in self.bridges.state_dict().items()}
        tensors |= {f"best|{k}": v for k, v in best.items()}
        tensors |= {f"optim|{k}": v for k, v in self.optimizer.state().items()}
        facts = {**vars(position)}
        if self.kept:
            facts["kept"] = self.states()
        checkpoint.save(path, tensors, facts)

    def load(self, path: Path) -> tuple[Position, dict[str, Tensor]] | None:
        """The position and the best weights of the checkpoint at `path`, whose other tensors are
        put into the parts; None if there is none. Raises RunError if it is damaged."""
        found = checkpoint.load(path)
        if found is None:
            return None
        tensors, facts = found
        parts: dict[str, dict[str, Tensor]] = {
            part: {} for part in ("model", "best", "optim", "bridges")
        }
        for name, tensor in tensors.items():
            part, _, rest = name.partition("|")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.bridges.load_state_dict(parts["bridges"])
        self.optimizer.load(parts["optim"])
        for name, state in facts.pop("kept", {}).items():
            self.kept[name].load(state)
        return Position(**facts), parts["best"]
