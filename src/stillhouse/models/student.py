"""Building a student: fewer of a model's layers with their weights, or a fresh smaller shape.

"Layer k" is block k, counted from 1, everywhere.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from stillhouse.core.config import StudentConfig
from stillhouse.core.errors import ModelError


def choose_layers(total: int, count: int, keep: str) -> list[int]:
    """Which `count` of `total` layers stay, 1-based and rising.

    alternate: evenly spread, the last one among them (6 -> 3 gives 2, 4, 6).
    Raises ModelError if there are not that many.
    """
    if count > total:
        raise ModelError(f"a student of {count} layers is larger than its source's {total}")
    if keep == "first":
        return list(range(1, count + 1))
    if keep == "last":
        return list(range(total - count + 1, total + 1))
    return [round(i * total / count) for i in range(1, count + 1)]


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a model's blocks and its dotted name. Raises ModelError if there is none."""
    total = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name, module
    raise ModelError(
        f"can't find the layers of {type(model).__name__}: name a student model instead"
    )


def take_layers(source: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """A model with only `layers` of `source`; every weight that both have is copied."""
    name, module = blocks(source)
    if layers and not (layers[0] >= 1 and layers[-1] <= len(module)):
        raise ModelError(f"layers {layers} are not all among the source's 1 to {len(module)}")
    config = copy.deepcopy(source.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [source.config.layer_types[k - 1] for k in layers]
    student = AutoModelForSequenceClassification.from_config(config)
    weights = {}
    position = {f"{name}.{k - 1}.": f"{name}.{i}." for i, k in enumerate(layers)}
    for key, tensor in source.state_dict().items():
        if not key.startswith(f"{name}."):
            weights[key] = tensor
            continue
        prefix = next((p for p in position if key.startswith(p)), None)
        if prefix is not None:
            weights[position[prefix] + key[len(prefix) :]] = tensor
    student.load_state_dict(weights)
    return student.eval()


def fresh(source: PreTrainedModel, shape: StudentConfig, seed: int) -> PreTrainedModel:
    """An untrained model like `source` in the asked shape, with its embeddings if they fit."""
    config = copy.deepcopy(source.config)
    layers = shape.layers if isinstance(shape.layers, int) else None
    config.num_hidden_layers = layers or config.num_hidden_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    config.hidden_size = shape.width or config.hidden_size
    ffn = _ffn_name(config)
    scaled = getattr(config, ffn) * config.hidden_size // source.config.hidden_size
    setattr(config, ffn, shape.ffn or scaled)
    config.num_attention_heads = shape.heads or _heads(source.config, config.hidden_size)
    if config.hidden_size % config.num_attention_heads:
        raise ModelError(
            f"a width of {config.hidden_size} is not a multiple of "
            f"{config.num_attention_heads} heads: set student.heads"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModelForSequenceClassification.from_config(config)
    if config.hidden_size == source.config.hidden_size:
        student.get_input_embeddings().load_state_dict(source.get_input_embeddings().state_dict())
    return student.eval()


def _ffn_name(config: Any) -> str:
    """The setting of a config that holds its feed-forward width. Raises ModelError."""
    for name in ("intermediate_size", "hidden_dim", "ffn_dim"):
        if hasattr(config, name):
            return name
    raise ModelError(f"can't reshape a {config.model_type}: name a student model instead")


def _heads(config: Any, width: int) -> int:
    """Heads of the source's own size, if they fit."""
    size = config.hidden_size // config.num_attention_heads
    return max(1, width // size)


def build(source: PreTrainedModel, shape: StudentConfig, *, seed: int = 0) -> PreTrainedModel:
    """A student of `shape` from `source`. With no shape at all: half of its layers, alternate."""
    total = source.config.num_hidden_layers
    if shape.width or shape.ffn or shape.heads:
        student = fresh(source, shape, seed)
    elif isinstance(shape.layers, list):
        student = take_layers(source, shape.layers)
    else:
        count = shape.layers or max(1, total // 2)
        student = take_layers(source, choose_layers(total, count, shape.keep))
    return student


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def refuse_larger(student: nn.Module, teacher: nn.Module) -> None:
    """Raises ModelError if the student has more parameters than the teacher."""
    mine, theirs = parameters(student), parameters(teacher)
    if mine > theirs:
        raise ModelError(
            f"the student is larger than its teacher ({mine:,} against {theirs:,} parameters): "
            "ask for fewer layers, a smaller width, or another model"
        )
