"""Masks and sparse models on disk: bits for the masks, and for a sparse model the values of the
weights that are left. Read back only by a model that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.core.errors import ModelError
from stillhouse.numerics.masks import pack, unpack
from stillhouse.training import checkpoint

KIND = "stillhouse masks"
MASKS = "masks.safetensors"  # their name in a model's folder


def save_masks(path: Path, masks: Mapping[str, Tensor], **facts: Any) -> None:
    """One file of bits, with facts that are JSON."""
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    bits = {name: pack(mask) for name, mask in masks.items()}
    checkpoint.save(path, bits, {"kind": KIND, "shapes": shapes, **facts})


def load_masks(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The masks and the facts. Raises ModelError if `path` holds none."""
    found = checkpoint.load(path)
    if found is None:
        raise ModelError(f"there are no masks {path}")
    bits, facts = found
    if facts.get("kind") != KIND:
        raise ModelError(f"{path} holds no masks")
    return {name: unpack(bits[name], shape) for name, shape in facts["shapes"].items()}, facts


def fitting(masks: Mapping[str, Tensor], model: nn.Module, origin: str) -> dict[str, Tensor]:
    """The masks that `model` has the weights of. An encoder's pooler may be missing on either
    side: masked language models have none. Raises ModelError for masks of another architecture.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    lacking = [name for name in masks if name not in shapes and ".pooler." not in name]
    other = [n for n, m in masks.items() if n in shapes and shapes[n] != tuple(m.shape)]
    if lacking or other:
        first = (other or lacking)[0]
        has = f"of shape {shapes[first]}" if other else "not there"
        raise ModelError(
            f"the masks of {origin} are of another architecture: {first} is "
            f"{tuple(masks[first].shape)} there, and {has} in {type(model).__name__}"
        )
    return {name: mask for name, mask in masks.items() if name in shapes}


def save_sparse(path: Path, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """The model's weights, masked ones left out: bits say where the others belong."""
    held = dict(model.named_parameters())
    kept = {*held, *dict(model.named_buffers())}  # a tensor that two names share is there once
    state = {n: t for n, t in model.state_dict().items() if n in kept and n not in masks}
    values = {f"value|{n}": held[n].detach()[mask] for n, mask in masks.items()}
    bits = {f"mask|{n}": pack(mask) for n, mask in masks.items()}
    shapes = {n: list(mask.shape) for n, mask in masks.items()}
    checkpoint.save(path, {**state, **values, **bits}, {"shapes": shapes})


def load_sparse(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Puts what `save_sparse` wrote into `model`; the masks. Raises ModelError."""
    found = checkpoint.load(path)
    if found is None:
        raise ModelError(f"there is no sparse model {path}")
    tensors, facts = found
    shapes: dict[str, list[int]] = facts["shapes"]
    masks = {name: unpack(tensors[f"mask|{name}"], shape) for name, shape in shapes.items()}
    state = {n: t for n, t in tensors.items() if not n.startswith(("value|", "mask|"))}
    for name, mask in fitting(masks, model, str(path)).items():
        dense = torch.zeros(mask.shape, dtype=tensors[f"value|{name}"].dtype)
        dense[mask] = tensors[f"value|{name}"]
        state[name] = dense
    shared = {*model.state_dict()} - {*dict(model.named_parameters()), *dict(model.named_buffers())}
    try:
        lacking, unknown = model.load_state_dict(state, strict=False)
        if unknown or {*lacking} - shared:
            raise RuntimeError(f"{[*unknown, *lacking][0]} doesn't fit")
    except RuntimeError as error:
        raise ModelError(f"{path} is no {type(model).__name__}: {error}") from None
    return masks
