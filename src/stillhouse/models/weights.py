"""An encoder's weights as its fast forward takes them: layers joined where one product does for
several, all in one dtype.

Casting, clipping and AdamW take a good part of a small model's step when each of its many
tensors is an operation of its own. `FlatWeights` therefore keeps all matrices in one
buffer and all vectors in another: each is cast at once (in float32 not at all), has one gradient,
and is stepped at once. The model's own parameters become views of the buffers, so whoever reads or
writes them (its own forward, `state_dict`, a callback) sees the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.core.errors import RunError

Joined = Sequence[Any]  # linear layers of the same input, or one norm
Masks = Mapping[str, Tensor]  # by a parameter's name: True where its weights are trained
NO_MASKS: Masks = {}
NO_MASKS_BY_ID: Mapping[int, Tensor] = {}


class Leaf(NamedTuple):
    """A tensor that the optimizer trains. `mask`: 1 where its gradient counts, 0 where the weight
    stays as it is; None where all of it does, or whoever makes the gradient has masked it."""

    name: str
    tensor: Tensor
    decays: bool
    mask: Tensor | None = None


Slot = Callable[[], Tensor]  # the place of a gradient, to be asked for when it is written


class Pair(NamedTuple):
    """A layer's weight and bias. `slots`: where their gradients are to be written."""

    weight: Tensor
    bias: Tensor
    slots: tuple[Slot, Slot] | None = None


def own_leaves(model: nn.Module, prefix: str = "", masks: Masks = NO_MASKS) -> list[Leaf]:
    """A model's trainable parameters; matrices decay, vectors don't. `masks`: by name."""
    return [
        Leaf(prefix + n, p, p.ndim >= 2, masks[n].to(p) if n in masks else None)
        for n, p in model.named_parameters()
        if p.requires_grad
    ]


def shares_layers(layers: Sequence[Joined]) -> bool:
    """Whether a layer occurs twice, so that it has one weight but would get two places."""
    every = [id(layer) for group in layers for layer in group]
    return len(set(every)) < len(every)


def joined(layers: Sequence[Joined], dtype: torch.dtype) -> list[Pair]:
    """The layers' weights and biases in `dtype`, differentiable."""

    def join(parts: list[Any]) -> Tensor:
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)

    return [
        Pair(join([m.weight for m in group]), join([m.bias for m in group])) for group in layers
    ]


class FlatWeights:
    """The layers' weights in two flat float32 buffers, which are what is trained."""

    def __init__(self, layers: Sequence[Joined], masks: Mapping[int, Tensor]) -> None:
        weights = [[m.weight for m in group] for group in layers]
        biases = [[m.bias for m in group] for group in layers]
        matrix = [group[0].ndim >= 2 for group in weights]
        self._matrices = _Buffer([w for w, m in zip(weights, matrix, strict=True) if m], masks)
        norms = [w for w, m in zip(weights, matrix, strict=True) if not m]
        self._vectors = _Buffer([*norms, *biases], masks)
        self._matrix = matrix

    def leaves(self) -> list[Leaf]:
        named = (("matrices", self._matrices, True), ("vectors", self._vectors, False))
        return [Leaf(name, buffer.values, decays) for name, buffer, decays in named]

    def parameters(self) -> set[int]:
        """The ids of the parameters that live in the buffers."""
        return {id(p) for b in (self._matrices, self._vectors) for g in b.groups for p in g}

    def pairs(self, dtype: torch.dtype) -> list[Pair]:
        """The layers' weights and biases in `dtype`; their gradients go to the buffers. Raises
        RunError if someone gave a parameter other memory: it would no longer be trained."""
        for buffer in (self._matrices, self._vectors):
            buffer.check()
        matrices, vectors = iter(self._matrices.views(dtype)), self._vectors.views(dtype)
        norms, biases = iter(vectors), iter(vectors[len(vectors) - len(self._matrix) :])
        found: list[Pair] = []
        for is_matrix in self._matrix:
            weight, slot = next(matrices if is_matrix else norms)
            bias, bias_slot = next(biases)
            found.append(Pair(weight, bias, (slot, bias_slot)))
        return found

    def release(self) -> None:
        """Gives every parameter its own memory back."""
        for buffer in (self._matrices, self._vectors):
            for group in buffer.groups:
                for parameter in group:
                    parameter.data = parameter.data.clone()


class _Buffer:
    """Groups of parameters, one after another in a flat tensor. `masks`: by parameters' ids."""

    def __init__(self, groups: list[list[nn.Parameter]], masks: Mapping[int, Tensor]) -> None:
        self.groups = groups
        self.shapes = [torch.Size([sum(map(len, g)), *g[0].shape[1:]]) for g in groups]
        members = [p for group in groups for p in group]
        self.values = torch.cat([p.detach().flatten() for p in members]).requires_grad_()
        for parameter, part in zip(
            members, self.values.detach().split([p.numel() for p in members]), strict=True
        ):
            parameter.data = part.view(parameter.shape)
        self._places = [(parameter, parameter.data_ptr()) for parameter in members]
        self._mask: Tensor | None = None
        if any(id(p) in masks for p in members):
            own = [masks.get(id(p), torch.ones_like(p, dtype=torch.bool)) for p in members]
            self._mask = torch.cat([mask.flatten() for mask in own]).to(self.values.device)

    def check(self) -> None:
        if any(parameter.data_ptr() != place for parameter, place in self._places):
            raise RunError("a parameter's data was replaced in training: change it in place")

    def views(self, dtype: torch.dtype) -> list[tuple[Tensor, Slot]]:
        """Each group in `dtype`, and the slot for its gradient."""
        slots = _Slots(self.shapes, dtype, self.values.device)
        if self._mask is not None and self._mask.dtype != dtype:
            self._mask = self._mask.to(dtype)
        values = _Unflatten.apply(self.values, slots, self._mask)
        return [(value, partial(slots.at, i)) for i, value in enumerate(values)]


class _Slots:
    """A flat gradient in `dtype`, made when its first part is written. Whoever takes it owns it:
    the next backward pass gets another."""

    def __init__(self, shapes: list[torch.Size], dtype: torch.dtype, device: torch.device) -> None:
        self.shapes, self.dtype, self.device = shapes, dtype, device
        self._parts: list[Tensor] | None = None

    def at(self, i: int) -> Tensor:
        if self._parts is None:
            size = sum(shape.numel() for shape in self.shapes)
            flat = torch.empty(size, dtype=self.dtype, device=self.device)
            self._parts = _cut(flat, self.shapes)
        return self._parts[i]

    def take(self) -> Tensor:
        flat = self.at(0)._base
        assert flat is not None, "each part is a view"
        self._parts = None
        return flat


def _cut(flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class _Unflatten(torch.autograd.Function):
    """A flat tensor as tensors of the slots' shapes and dtype, whose gradients are collected in the
    slots. Each of them may be used once. `mask`: 0 where the gradient is to be 0; it costs next to
    nothing in the product that casts it."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, slots: _Slots, mask: Tensor | None) -> tuple[Tensor, ...]:
        ctx.slots, ctx.mask = slots, mask
        return tuple(_cut(flat.detach().to(slots.dtype), slots.shapes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None, None]:  # pyright: ignore
        for i, gradient in enumerate(gradients):
            slot = ctx.slots.at(i)
            if gradient is None:
                slot.zero_()
            elif gradient.data_ptr() != slot.data_ptr():
                slot.copy_(gradient)
        flat = ctx.slots.take()
        if ctx.mask is None:
            return flat.to(torch.float32), None, None
        found = torch.empty(flat.shape, device=flat.device)
        return torch.mul(flat, ctx.mask, out=found), None, None


class _Linear(torch.autograd.Function):
    """`F.linear` whose gradients by weight and bias are written to their slots."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slots: tuple[Slot, Slot]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slots = slots
        return torch.mm(x, weight.t()).add_(bias)  # on a CPU faster than addmm

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        by_weight, by_bias = (slot() for slot in ctx.slots)
        torch.mm(gradient.t(), x, out=by_weight)
        torch.sum(gradient, 0, out=by_bias)
        return torch.mm(gradient, weight), by_weight, by_bias, None


def linear(x: Tensor, pair: Pair) -> Tensor:
    """N x in -> N x out."""
    if pair.slots is not None and x.device.type == "cpu" and torch.is_grad_enabled():
        return _Linear.apply(x, pair.weight, pair.bias, pair.slots)  # pyright: ignore
    return F.linear(x, pair.weight, pair.bias)


def last_linear(x: Tensor, pair: Pair) -> Tensor:
    """`linear` of a head's last layer, N x K, in float32 also where the weights are bf16: in the 8
    bits of that, answers of 3 and of 3.005 are one."""
    if x.dtype == torch.float32:
        return linear(x, pair)
    return F.linear(x.float(), pair.weight.float(), pair.bias.float())


@contextlib.contextmanager
def flattened(
    layers: Sequence[Joined], masks: Mapping[int, Tensor] = NO_MASKS_BY_ID
) -> Iterator[FlatWeights]:
    """The layers' weights in flat buffers inside the block, and back in their own after it.
    `masks`, by parameters' ids, are True where a weight is trained."""
    flat = FlatWeights(layers, masks)
    try:
        yield flat
    finally:
        flat.release()
