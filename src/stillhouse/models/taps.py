"""Reading and replacing what is inside a model, in a with-block.

States between blocks are seen by hooks on the blocks. What is inside an attention is seen where
transformers calls it: inside the with-block, the attentions of the layers that are read (and only
they) call us first; we note what was asked for and let the model's own implementation go on.
Scores are therefore read from models that never compute them (sdpa), with rotary positions
applied, and layers that are not read run as they always do.

Axes: B examples, T tokens, A heads, D width of a head.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stillhouse.core.errors import ModelError, unknown
from stillhouse.core.types import Tap
from stillhouse.models import slim
from stillhouse.models.student import blocks

# Where a family's block keeps its attention.
ATTENTION = {
    "bert": "attention.self",
    "roberta": "attention.self",
    "xlm-roberta": "attention.self",
    "electra": "attention.self",
    "distilbert": "attention",
    "modernbert": "attn",
}
PARTS = ("queries", "keys", "values", "scores", "probabilities")
UNREADABLE = "probabilities can't be read with this attention: load it with sdpa"
NAME = "stillhouse-taps"  # our entry among transformers' attention implementations

Replacements = Mapping[Tap, Callable[[Tensor], Tensor]]
_active: dict[nn.Module, _Inside] = {}


@dataclass(frozen=True)
class Geometry:
    """A model's blocks, the width of its states, its heads (0: no attention we know), the width of
    all heads together, and the layers whose tokens attend to their neighbours only."""

    layers: int
    width: int
    heads: int
    attention_width: int
    local: frozenset[int] = frozenset()


def geometry(model: nn.Module) -> Geometry:
    """Raises ModelError for a model without blocks."""
    layers = blocks(model)[1]
    config: Any = model.config
    heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    by_layer = getattr(config, "heads_by_layer", None)
    if by_layer is not None:  # a number that all layers share, or none that can be asked
        heads = by_layer[0] if len(set(by_layer)) == 1 else 0
    kinds = getattr(config, "layer_types", None) or []
    local = frozenset(i for i, kind in enumerate(kinds, start=1) if "sliding" in kind)
    return Geometry(len(layers), config.hidden_size, heads, heads * size, local)


def check_taps(model: nn.Module, taps: Collection[Tap]) -> None:
    """Raises ModelError, one line, for a tap that `model` has not."""
    named = dict(model.named_modules())
    for tap in sorted(taps):
        if tap.what == "module":
            if tap.name not in named:
                close = [n for n in named if n.endswith(tap.name.rpartition(".")[2])]
                raise ModelError(unknown("module", tap.name, close[:8] or list(named)[1:9]))
            continue
        _, layers = blocks(model)
        lowest = 0 if tap.what == "hidden" else 1
        if not lowest <= tap.layer <= len(layers):
            raise ModelError(
                f"there is no layer {tap.layer} to read {tap.what} of: {_name(model)} has "
                f"layers {lowest} to {len(layers)}"
            )
        if tap.what in PARTS:
            _attention(model, layers[tap.layer - 1])


@contextlib.contextmanager
def reading(
    model: nn.Module, taps: Collection[Tap], *, replace: Replacements | None = None
) -> Iterator[dict[Tap, Tensor]]:
    """A dict that each forward inside the block fills with what `taps` name.

    `replace`: functions from what is there to what is to go on in its place; a tap that is read
    too is read after that. Raises ModelError for a tap that the model has not, or a model that
    is being read already.
    """
    replace = replace or {}
    wanted = {*taps, *replace}
    check_taps(model, wanted)
    inside = _Inside(frozenset(taps), replace, _Found())
    handles: list[Any] = []
    swapped: list[tuple[Any, Any]] = []
    try:
        for tap in wanted:
            if tap.what in ("hidden", "module"):
                handles.append(_hook(model, tap, inside))
        for layer in sorted({tap.layer for tap in wanted if tap.what in PARTS}):
            module = _attention(model, blocks(model)[1][layer - 1])
            if module in _active:
                raise ModelError(f"layer {layer} of {_name(model)} is being read already")
            swapped.append((module, module.config))
            _active[module] = inside.of(layer, module.config._attn_implementation)
            module.config = copy.copy(module.config)
            module.config._attn_implementation_internal = NAME
        yield inside.found
    finally:
        for handle in handles:
            handle.remove()
        for module, config in swapped:
            module.config = config
            _active.pop(module, None)


class _Found(dict[Tap, Tensor]):
    def __missing__(self, tap: Tap) -> Tensor:
        raise KeyError(
            f"{tap} was not read: name it in reading(), and run the model inside the block"
        )


class _Inside:
    """What is wanted of one forward, and what was found."""

    def __init__(
        self, reads: frozenset[Tap], replace: Replacements, found: dict[Tap, Tensor]
    ) -> None:
        self.reads, self.replace, self.found = reads, replace, found
        self.layer, self.own = 0, "sdpa"

    def of(self, layer: int, own: str | None) -> _Inside:
        """The same for the attention of one layer, whose own implementation is `own`."""
        inside = _Inside(self.reads, self.replace, self.found)
        inside.layer, inside.own = layer, own or "eager"
        return inside

    def pass_on(self, tap: Tap, value: Tensor) -> Tensor:
        if tap in self.replace:
            value = self.replace[tap](value)
        if tap in self.reads:
            self.found[tap] = value
        return value

    def wants(self, what: str) -> bool:
        tap = Tap(what, self.layer)  # pyright: ignore[reportArgumentType]
        return tap in self.reads or tap in self.replace


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _attention(model: nn.Module, block: nn.Module) -> Any:
    """The module of a block that calls transformers' attention. Raises ModelError."""
    family = slim.family(getattr(getattr(model, "config", None), "model_type", _name(model)))
    if family not in ATTENTION:
        raise ModelError(
            f"the attention of {family} can't be read, only that of {', '.join(ATTENTION)}: use "
            "terms of hidden states, or another model"
        )
    if getattr(model.config, "is_decoder", False):  # its mask is the kernel's own affair
        raise ModelError(f"the attention of {_name(model)} can't be read: it is a decoder")
    try:
        return block.get_submodule(ATTENTION[family])
    except AttributeError:
        raise ModelError(f"{_name(model)} has no attention to read") from None


def _hook(model: nn.Module, tap: Tap, inside: _Inside) -> Any:
    """A hook that reads or replaces the input of the first block (hidden 0) or an output."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (inside.pass_on(tap, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": inside.pass_on(tap, kwargs["hidden_states"])}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        several = isinstance(output, tuple)
        value = output[0] if several else output
        if not isinstance(value, Tensor):
            raise ModelError(f"module {tap.name} gives no tensor: name a module inside it")
        value = inside.pass_on(tap, value)
        return (value, *output[1:]) if several else value

    if tap.what == "module":
        return model.get_submodule(tap.name).register_forward_hook(after)
    layers = blocks(model)[1]
    if tap.layer == 0:
        return layers[0].register_forward_pre_hook(before, with_kwargs=True)
    return layers[tap.layer - 1].register_forward_hook(after)


def _tapped(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """Called by an attention that is read: notes its parts, then does what it would have done."""
    inside = _active[module]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = inside.pass_on(Tap("queries", inside.layer), query)
    key = inside.pass_on(Tap("keys", inside.layer), key)
    value = inside.pass_on(Tap("values", inside.layer), value)
    places = Tap("scores", inside.layer), Tap("probabilities", inside.layer)
    replaced = any(tap in inside.replace for tap in places)
    if replaced or inside.wants("scores") or inside.wants("probabilities"):
        scores = inside.pass_on(
            Tap("scores", inside.layer), (query @ key.transpose(-1, -2)) * scale
        )
        if replaced or inside.wants("probabilities"):
            if "flash" in inside.own and rest.get("sliding_window") is not None:
                raise ModelError(UNREADABLE)  # its mask says nothing of the window
            masked = _masked(scores, attention_mask).softmax(-1, dtype=torch.float32)
            weights = inside.pass_on(Tap("probabilities", inside.layer), masked.to(query.dtype))
            if replaced:
                weights = nn.functional.dropout(weights, dropout, training=module.training)
                return (weights @ value).transpose(1, 2).contiguous(), weights
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    own = ALL_ATTENTION_FUNCTIONS.get_interface(inside.own, eager)  # pyright: ignore
    return own(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest)


def _masked(scores: Tensor, mask: Any) -> Tensor:
    """Scores that a softmax may be taken of. Raises ModelError for a mask we can't read."""
    if mask is None:
        return scores
    if not isinstance(mask, Tensor):
        raise ModelError(UNREADABLE)
    if mask.ndim == 2:
        mask = mask[:, None, None, :].bool()
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


ALL_ATTENTION_FUNCTIONS.register(NAME, _tapped)
