"""A step over several processes: each has its share of the rows, and all have the same sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from stillhouse.core.types import Batch, Unit
from stillhouse.training.optim import Optimizer
from stillhouse.training.steps import StepStats


class Ranks:
    """The processes of a run, seen from this one."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def share(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """This process's rows of a step's micro-batches, without those that it has none of."""
        mine = [part[self.rank :: self.world] for part in rows]
        return [part for part in mine if len(part)]

    def totals(self, batches: Sequence[Batch], examples: int) -> dict[Unit, int]:
        """How many examples and scored rows the step has, over all processes."""
        scored = sum(batch.scored for batch in batches)
        if self.world > 1:
            scored = int(self._sum(torch.tensor(scored, device=self._accelerator.device)))
        return {"examples": examples, "scored": scored}

    def reduce(self, optimizer: Optimizer, stats: StepStats) -> None:
        """Sums the gradients and values of all processes: each divided by all rows already. The
        table whose touched rows only are updated keeps its touched rows: those of any process."""
        if self.world == 1:
            return
        stats.loss = self._sum(stats.loss)
        stats.values = {name: self._sum(value) for name, value in stats.values.items()}
        rows = optimizer.rows
        for p in optimizer.parameters:
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            total = self._sum(gradient.to_dense() if gradient.is_sparse else gradient)
            if rows is not None and p is rows.table:
                touched = torch.zeros(len(p), device=p.device)
                if gradient.is_sparse:
                    touched[gradient.coalesce().indices()[0]] = 1.0
                at = self._sum(touched).nonzero()[:, 0]
                total = torch.sparse_coo_tensor(
                    at[None], total[at], total.shape, is_coalesced=True, check_invariants=False
                )
            p.grad = total

    def _sum(self, tensor: Tensor) -> Tensor:
        return self._accelerator.reduce(tensor, "sum")  # pyright: ignore
