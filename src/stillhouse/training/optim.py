"""The optimizer: AdamW, with embedding tables updated only in the rows a step touched.

A vocabulary's table is most of a small model's weights, and a step touches a few hundred of its
rows. Dense AdamW reads and writes all of them each step. `RowAdamW` keeps AdamW's arithmetic for
the touched rows, with each row's own step count in the bias correction, and leaves the others as
they are: no momentum drift and no decay for a word that did not occur.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from stillhouse.core.config import TrainingConfig
from stillhouse.core.errors import RunError
from stillhouse.models.weights import Leaf, own_leaves


class RowAdamW:
    """AdamW over the rows of one table that have a gradient. State: m and v (the table's shape),
    and how many steps each row had."""

    def __init__(
        self,
        table: Tensor,
        *,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
    ) -> None:
        self.table = table
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps
        self.m = torch.zeros_like(table)
        self.v = torch.zeros_like(table)
        self.steps = torch.zeros(len(table), dtype=torch.float32, device=table.device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        gradient = self.table.grad
        if gradient is None:
            return
        rows, g = gradient.indices()[0], gradient.values()
        beta1, beta2 = self.betas
        steps = self.steps[rows] + 1
        m = self.m[rows].lerp_(g, 1 - beta1)
        v = self.v[rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        corrected_m = 1 - torch.pow(beta1, steps)
        corrected_v = (1 - torch.pow(beta2, steps)).sqrt_()
        denominator = (v.sqrt() / corrected_v[:, None]).add_(self.eps)
        w = self.table[rows].mul_(1 - lr * self.weight_decay)
        w.sub_(m.div(denominator).mul_((lr / corrected_m)[:, None]))
        self.table[rows] = w
        self.m[rows], self.v[rows], self.steps[rows] = m, v, steps

    def state(self) -> dict[str, Tensor]:
        return {"m": self.m, "v": self.v, "steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


class Optimizer:
    """AdamW for the leaves (those of the model: decay on matrices only), RowAdamW for its input
    embedding if `config.embeddings` is 'rows'. Gradients are clipped over all of them together."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, leaves: Sequence[Leaf] | None = None
    ) -> None:
        self.config = config
        table = _embedding(model)
        self.rows: RowAdamW | None = None
        if table is not None and config.embeddings == "frozen":
            table.weight.requires_grad_(False)
        leaves = own_leaves(model) if leaves is None else leaves
        if table is not None:
            masked = any(leaf.tensor is table.weight and leaf.mask is not None for leaf in leaves)
            trained = config.embeddings == "rows" and table.weight.requires_grad and not masked
            table.sparse = trained and _only_input(model, table)
        if table is not None and table.sparse:
            self.rows = RowAdamW(table.weight, weight_decay=config.weight_decay, betas=config.betas)
        self.dense = [
            leaf
            for leaf in leaves
            if leaf.tensor.requires_grad and not (self.rows and leaf.tensor is self.rows.table)
        ]
        self._masked = [  # in the weights' own type: a product with bool takes ten times as long
            (leaf.tensor, leaf.mask.to(leaf.tensor.dtype))
            for leaf in self.dense
            if leaf.mask is not None
        ]
        groups = [
            {
                "params": [leaf.tensor for leaf in self.dense if leaf.decays is decays],
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    @property
    def parameters(self) -> list[Tensor]:
        found = [leaf.tensor for leaf in self.dense]
        return [*found, self.rows.table] if self.rows else found

    def clip(self) -> Tensor:
        """The gradient's norm before it is scaled down to `config.clip`. Masked weights have no
        gradient, so they keep their value, and have no moments either."""
        for tensor, mask in self._masked:
            if tensor.grad is not None:
                tensor.grad.mul_(mask)
        if self.rows is not None and self.rows.table.grad is not None:
            self.rows.table.grad = self.rows.table.grad.coalesce()
        gradients = _values(p.grad for p in self.parameters)
        norm = torch.stack([_norm(gradient) for gradient in gradients]).norm()
        if self.config.clip is not None:
            scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def step(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        if self.rows is not None:
            self.rows.step(lr)
        for p in self.parameters:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named tensors."""
        found: dict[str, Tensor] = {}
        for name, p, *_ in self.dense:
            for key, value in self.adamw.state.get(p, {}).items():
                found[f"{name}|{key}"] = value
        if self.rows is not None:
            found |= {f"rows|{key}": value for key, value in self.rows.state().items()}
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Raises RunError for a state of other tensors."""
        mine = {leaf.name for leaf in self.dense} | ({"rows"} if self.rows else set())
        if state and {key.partition("|")[0] for key in state} - mine:
            raise RunError(
                "the checkpoint is of another version or kind of machine: delete the run's "
                "checkpoints folder, and run again"
            )
        for name, p, *_ in self.dense:
            mine = {k.partition("|")[2]: v for k, v in state.items() if k.startswith(f"{name}|")}
            if mine:
                self.adamw.state[p] = {key: value.clone() for key, value in mine.items()}
        if self.rows is not None:
            self.rows.load(
                {k.partition("|")[2]: v for k, v in state.items() if k.startswith("rows|")}
            )


def _values(gradients: Iterable[Tensor | None]) -> list[Tensor]:
    present = [g for g in gradients if g is not None]
    return [g.values() if g.is_sparse else g for g in present]


def _norm(gradient: Tensor) -> Tensor:
    """Its length; a long one row by row, which a CPU does in parallel."""
    flat = gradient.reshape(-1)
    even = len(flat) // 1024 * 1024
    if even < 2**20:
        return flat.norm()
    parts = [flat[:even].view(-1, 1024).norm(dim=1), flat[even:]]
    return torch.cat(parts).norm()


def _embedding(model: nn.Module) -> nn.Embedding | None:
    """A model's table of input words, if it has one."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        found = find() if find is not None else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Embedding) else None


def _only_input(model: nn.Module, table: nn.Embedding) -> bool:
    """Whether the table is used for looking words up and nothing else, on a CPU."""
    users = [m for m in model.modules() if getattr(m, "weight", None) is table.weight]
    return len(users) == 1 and table.weight.device.type == "cpu" and table.max_norm is None


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: warm-up from near 0, then decay towards 0."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    if config.decay == "linear":
        return config.lr * (1 - share)
    if config.decay == "cosine":
        return config.lr * (1 + math.cos(math.pi * share)) / 2
    return config.lr
