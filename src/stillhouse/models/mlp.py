"""A small multi-layer perceptron over plain vectors, saved and loaded like any transformers model.

Axes: B examples, D vector width, K choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from stillhouse.models.dropout import dropout


class MLPConfig(PretrainedConfig):
    model_type = "stillhouse-mlp"

    def __init__(
        self,
        inputs: int = 784,
        hidden: Sequence[int] = (800, 800),
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        **others: Any,
    ) -> None:
        self.inputs = inputs
        self.hidden = list(hidden)
        self.input_dropout = input_dropout
        self.dropout = dropout
        super().__init__(**others)


class MLPClassifier(PreTrainedModel):
    """ReLU layers of the given widths, then a linear head. Input: `vectors`, B x D."""

    config_class = MLPConfig
    main_input_name = "vectors"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        widths = [config.inputs, *config.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.classifier = nn.Linear(widths[-1], len(config.id2label or {}))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(
        self, vectors: Tensor, rng: np.random.Generator | None = None
    ) -> SequenceClassifierOutput:
        """Dropout, in training mode, draws from `rng` where one is given, else from torch."""
        x = self._drop(vectors, self.config.input_dropout, rng)
        for layer in self.layers:
            x = self._drop(torch.relu(layer(x)), self.config.dropout, rng)
        return SequenceClassifierOutput(logits=self.classifier(x))

    def _drop(self, x: Tensor, p: float, rng: np.random.Generator | None) -> Tensor:
        if self.training and rng is not None:
            return dropout(x, p, rng)
        return nn.functional.dropout(x, p, self.training)
