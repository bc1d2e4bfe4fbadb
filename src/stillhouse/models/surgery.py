"""Physical removal: whole layers, attention heads and feed-forward neurons cut out of an encoder.

What is left computes what the dense model would with the removed parts multiplied by 0, and is
dense: smaller matrices, no masks.

"Layer k" is block k, counted from 1; heads and neurons are counted from 0.

Axes: A heads, D width of a head, F neurons, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.core.errors import ModelError
from stillhouse.models import slim
from stillhouse.models.shapes import ffn_name
from stillhouse.models.student import blocks, take_layers


@dataclass(frozen=True)
class Kept:
    """What stays of a layer."""

    layer: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Heads and neurons of every layer, and the width of a head."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    head: int


def sizes(model: PreTrainedModel) -> Sizes:
    """Raises ModelError for a model whose blocks can't be cut."""
    parts = parts_of(model)
    found = [
        (block.get_submodule(parts[0][0]), block.get_submodule(parts[2]))
        for block in blocks(model)[1]
    ]
    head = model.config.hidden_size // model.config.num_attention_heads
    return Sizes(
        tuple(query.out_features // head for query, _ in found),  # pyright: ignore
        tuple(first.out_features for _, first in found),  # pyright: ignore
        head,
    )


def everything(model: PreTrainedModel) -> list[Kept]:
    """All that there is: what a removal starts from."""
    own = sizes(model)
    return [
        Kept(k, tuple(range(heads)), tuple(range(neurons)))
        for k, (heads, neurons) in enumerate(zip(own.heads, own.neurons, strict=True), start=1)
    ]


def cut(model: PreTrainedModel, kept: Sequence[Kept]) -> PreTrainedModel:
    """A model of what is kept of `model`, in eval mode; `model` stays as it is.

    It is of the same class where the stock config can say its shape (all heads, one number of
    neurons), else of a slim class that loads like it. Raises ModelError where nothing, or what is
    not there, would be kept.
    """
    own, parts = sizes(model), parts_of(model)
    _check(kept, own)
    fewer: Any = take_layers(model, [each.layer for each in kept])
    heads = [len(each.heads) for each in kept]
    neurons = [len(each.neurons) for each in kept]
    made = _made(fewer, heads, neurons, own)
    state = fewer.state_dict()
    name, _ = blocks(fewer)
    for place, each in enumerate(kept):
        prefix = f"{name}.{place}."
        rows = torch.tensor([a * own.head + d for a in each.heads for d in range(own.head)])
        units = torch.tensor(each.neurons)
        for part in parts[0]:
            _take(state, prefix + part, rows, 0)
        _take(state, prefix + parts[1], rows, 1)
        _take(state, prefix + parts[2], units, 0)
        _take(state, prefix + parts[3], units, 1)
    made.load_state_dict(state)
    return made.eval()


def _take(state: dict[str, Tensor], name: str, indices: Tensor, axis: int) -> None:
    """Keeps rows (and biases) or columns of a linear layer."""
    state[f"{name}.weight"] = state[f"{name}.weight"].index_select(axis, indices)
    if axis == 0:
        state[f"{name}.bias"] = state[f"{name}.bias"][indices]


def _check(kept: Sequence[Kept], own: Sizes) -> None:
    if not kept:
        raise ModelError("nothing is left: keep at least one layer")
    for each in kept:
        if not 1 <= each.layer <= len(own.heads):
            raise ModelError(f"there is no layer {each.layer} to keep of {len(own.heads)}")
        for what, indices, count in (
            ("heads", each.heads, own.heads[each.layer - 1]),
            ("neurons", each.neurons, own.neurons[each.layer - 1]),
        ):
            if not indices:
                raise ModelError(f"layer {each.layer} needs at least one of its {what}")
            if sorted(set(indices)) != list(indices) or indices[-1] >= count or indices[0] < 0:
                raise ModelError(f"the {what} of layer {each.layer} are 0 to {count - 1}, rising")


def _made(model: Any, heads: list[int], neurons: list[int], own: Sizes) -> Any:
    """An empty model for the sizes, of the stock class if that can have them."""
    config: Any = model.config
    whole = all(count == config.num_attention_heads for count in heads)
    if whole and len(set(neurons)) == 1 and not config.model_type.startswith(slim.PREFIX):
        setattr(config, ffn_name(config), neurons[0])
        return type(model)(config)
    stock = slim.family(config.model_type)
    settings, *classes = next(k for k in slim.KINDS if slim.family(k[0].model_type) == stock)
    masked = type(model).__name__.endswith("ForMaskedLM")
    dropped = ("model_type", "architectures", "auto_map")
    values = {k: v for k, v in config.to_dict().items() if k not in dropped}
    values |= {"heads_by_layer": heads, "ffn_by_layer": neurons}
    return classes[1 if masked else 0](settings.from_dict(values))


def parts_of(model: Any) -> tuple[tuple[str, ...], str, str, str]:
    """The names of a block's linear layers. Raises ModelError for a family that can't be cut."""
    kind = slim.family(getattr(model.config, "model_type", ""))
    if kind not in slim.PARTS:
        raise ModelError(
            f"heads and neurons of a {kind or type(model).__name__} can't be removed, only those "
            f"of {', '.join(slim.PARTS)}: remove whole layers (--student layers=...)"
        )
    return slim.PARTS[kind]
