"""Masks on a model's weights: put on, and seen to hold.

A mask is True where a weight stays; masks are a dict by parameter's name.
"""

from __future__ import annotations

import torch
from torch import nn

from stillhouse.core.errors import RunError
from stillhouse.models.weights import Masks


def apply_masks(model: nn.Module, masks: Masks) -> Masks:
    """Sets the masked weights to 0 in place; the masks, on the model's device. Raises ValueError
    for a name or a shape that the model doesn't have."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"the model has no weight {name} to mask")
        if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}, and its weight is of "
                f"shape {tuple(parameters[name].shape)}: a mask is bool, of the same shape"
            )
    on_device = {name: mask.to(parameters[name].device) for name, mask in masks.items()}
    with torch.no_grad():
        for name, mask in on_device.items():
            parameters[name].mul_(mask)
    return on_device


def check_masks(model: nn.Module, masks: Masks) -> None:
    """Raises RunError where a masked weight is not exactly 0."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        moved = int(torch.count_nonzero(parameters[name].detach()[~mask]))
        if moved:
            raise RunError(f"{moved} masked weights of {name} are not 0: something wrote to them")
