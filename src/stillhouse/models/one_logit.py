"""A binary classifier of one output, as a classifier of two: sigmoid(z) = softmax([0, z])."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.core.errors import ModelError

CHOICES = ("0", "1")  # the names of its two classes


def is_one_logit(config: Any, task: str) -> bool:
    """Whether a head's only output is the logit of class 1: where the task is a classification, or
    the config's problem is one of sigmoids (multi-label, of one label)."""
    if getattr(config, "num_labels", None) != 1 or task not in ("auto", "classification"):
        return False
    sigmoid = getattr(config, "problem_type", None) == "multi_label_classification"
    return task == "classification" or sigmoid


@torch.no_grad()
def as_two_classes(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the logits [0, z] where it had z: its probabilities are the same. Raises
    ModelError where its last layer isn't one linear layer of one output."""
    inside = {id(module) for module in model.base_model.modules()}
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and id(module) not in inside
    ]
    if len(heads) != 1:
        raise ModelError(
            f"a classifier of one output ends in one linear layer, this one has {len(heads)} of "
            "one output: save it with two outputs"
        )
    ((name, old),) = heads
    new = nn.Linear(old.in_features, 2, bias=old.bias is not None)
    new.to(device=old.weight.device, dtype=old.weight.dtype)
    new.weight.copy_(torch.cat([torch.zeros_like(old.weight), old.weight]))
    if old.bias is not None:
        new.bias.copy_(torch.cat([torch.zeros_like(old.bias), old.bias]))
    model.set_submodule(name, new)
    model.config.num_labels = 2
    model.config.id2label = dict(enumerate(CHOICES))
    model.config.label2id = {choice: i for i, choice in enumerate(CHOICES)}
    model.config.problem_type = "single_label_classification"
    if hasattr(model, "num_labels"):
        setattr(model, "num_labels", 2)  # noqa: B010  (pyright takes it for a module)
    return model.eval()
