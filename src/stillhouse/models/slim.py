"""Encoders whose blocks have heads and feed-forward neurons of their own number.

transformers takes the width of all heads together from the hidden size, so a model with fewer heads
needs classes of its own. Once this module is imported they load with `from_pretrained` like any
other; where it isn't, this file goes with the weights and loads with trust_remote_code=True. It
needs nothing but torch and transformers.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

PREFIX = "stillhouse-slim-"
# A block's linear layers: those of the heads (in: hidden, out: heads), the one after them, those
# of the feed-forward.
BERT = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
DISTILBERT = (
    ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention.out_lin",
    "ffn.lin1",
    "ffn.lin2",
)
PARTS = {"bert": BERT, "roberta": BERT, "distilbert": DISTILBERT}
BLOCKS = {"bert": "encoder.layer", "roberta": "encoder.layer", "distilbert": "transformer.layer"}


def family(model_type: str) -> str:
    """The family a model type is of: its own, but for slim ones."""
    return model_type.removeprefix(PREFIX)


class SlimBertConfig(BertConfig):
    """`heads_by_layer`, `ffn_by_layer`: how many each block has; None: as the config says."""

    model_type = PREFIX + "bert"

    def __init__(
        self,
        heads_by_layer: list[int] | None = None,
        ffn_by_layer: list[int] | None = None,
        **others: Any,
    ) -> None:
        self.heads_by_layer, self.ffn_by_layer = heads_by_layer, ffn_by_layer
        super().__init__(**others)


class SlimRobertaConfig(RobertaConfig):
    """As SlimBertConfig."""

    model_type = PREFIX + "roberta"

    def __init__(
        self,
        heads_by_layer: list[int] | None = None,
        ffn_by_layer: list[int] | None = None,
        **others: Any,
    ) -> None:
        self.heads_by_layer, self.ffn_by_layer = heads_by_layer, ffn_by_layer
        super().__init__(**others)


class SlimDistilBertConfig(DistilBertConfig):
    """As SlimBertConfig."""

    model_type = PREFIX + "distilbert"

    def __init__(
        self,
        heads_by_layer: list[int] | None = None,
        ffn_by_layer: list[int] | None = None,
        **others: Any,
    ) -> None:
        self.heads_by_layer, self.ffn_by_layer = heads_by_layer, ffn_by_layer
        super().__init__(**others)


class _Slim:
    """Gives every block its own sizes, once the class it is mixed into has made the whole."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        for made in shrink(self, config):
            self._init_weights(made)  # pyright: ignore[reportAttributeAccessIssue]


def shrink(model: Any, config: Any) -> list[nn.Linear]:
    """Replaces the blocks' linear layers by ones of the sizes that `config` asks; these."""
    kind = family(config.model_type)
    heads, after, first, second = PARTS[kind]
    size = config.hidden_size // config.num_attention_heads
    made: list[nn.Linear] = []
    for place, block in enumerate(model.base_model.get_submodule(BLOCKS[kind])):
        if config.heads_by_layer is not None:
            width = config.heads_by_layer[place] * size
            for name in heads:
                made.append(_replace(block, name, config.hidden_size, width))
            made.append(_replace(block, after, width, config.hidden_size))
        if config.ffn_by_layer is not None:
            made.append(_replace(block, first, config.hidden_size, config.ffn_by_layer[place]))
            made.append(_replace(block, second, config.ffn_by_layer[place], config.hidden_size))
    return made


def _replace(block: nn.Module, name: str, inputs: int, outputs: int) -> nn.Linear:
    parent, _, last = name.rpartition(".")
    old = block.get_submodule(name)
    made = nn.Linear(inputs, outputs, device=old.weight.device, dtype=old.weight.dtype)  # pyright: ignore
    setattr(block.get_submodule(parent), last, made)
    return made


class SlimBertModel(_Slim, BertModel):
    config_class = SlimBertConfig


class SlimRobertaModel(_Slim, RobertaModel):
    config_class = SlimRobertaConfig


class SlimDistilBertModel(_Slim, DistilBertModel):
    config_class = SlimDistilBertConfig


class SlimBertForSequenceClassification(_Slim, BertForSequenceClassification):
    config_class = SlimBertConfig


class SlimBertForMaskedLM(_Slim, BertForMaskedLM):
    config_class = SlimBertConfig


class SlimRobertaForSequenceClassification(_Slim, RobertaForSequenceClassification):
    config_class = SlimRobertaConfig


class SlimRobertaForMaskedLM(_Slim, RobertaForMaskedLM):
    config_class = SlimRobertaConfig


class SlimDistilBertForSequenceClassification(_Slim, DistilBertForSequenceClassification):
    config_class = SlimDistilBertConfig


class SlimDistilBertForMaskedLM(_Slim, DistilBertForMaskedLM):
    config_class = SlimDistilBertConfig


KINDS = (
    (SlimBertConfig, SlimBertForSequenceClassification, SlimBertForMaskedLM, SlimBertModel),
    (
        SlimRobertaConfig,
        SlimRobertaForSequenceClassification,
        SlimRobertaForMaskedLM,
        SlimRobertaModel,
    ),
    (
        SlimDistilBertConfig,
        SlimDistilBertForSequenceClassification,
        SlimDistilBertForMaskedLM,
        SlimDistilBertModel,
    ),
)
for settings, classifier, masked, plain in KINDS:
    AutoConfig.register(settings.model_type, settings, exist_ok=True)
    AutoModelForSequenceClassification.register(settings, classifier, exist_ok=True)
    AutoModelForMaskedLM.register(settings, masked, exist_ok=True)
    AutoModel.register(settings, plain, exist_ok=True)
    settings.register_for_auto_class()
    classifier.register_for_auto_class("AutoModelForSequenceClassification")
    masked.register_for_auto_class("AutoModelForMaskedLM")
    plain.register_for_auto_class("AutoModel")
