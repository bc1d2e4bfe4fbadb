"""Masked language models: loading one, its vocabulary head on chosen tokens only, and one around
another model's encoder.

Axes: N scored tokens, B examples, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from stillhouse.core.errors import ModelError, unknown
from stillhouse.models.kinds import refuse_inputs
from stillhouse.models.load import load_config, pretrained

Head = Callable[[Any, Tensor], Tensor]


def _distilbert(model: Any, hidden_NH: Tensor) -> Tensor:
    inner = model.activation(model.vocab_transform(hidden_NH))
    return model.vocab_projector(model.vocab_layer_norm(inner))


HEADS: dict[str, Head] = {
    "bert": lambda model, hidden_NH: model.cls(hidden_NH),
    "roberta": lambda model, hidden_NH: model.lm_head(hidden_NH),
    "xlm-roberta": lambda model, hidden_NH: model.lm_head(hidden_NH),
    "distilbert": _distilbert,
    "electra": lambda model, hidden_NH: model.generator_lm_head(
        model.generator_predictions(hidden_NH)
    ),
    "modernbert": lambda model, hidden_NH: model.decoder(model.head(hidden_NH)),
}


def vocabulary_scores(model: nn.Module, hidden_NH: Tensor) -> Tensor:
    """Scores of the vocabulary for last hidden states of chosen tokens, N x V.

    A vocabulary's head is most of a small model's work, and only masked tokens need it.
    """
    return HEADS[model.config.model_type](model, hidden_NH)  # pyright: ignore


def check_family(config: Any) -> None:
    """Raises ModelError for a model whose vocabulary head we can't apply to chosen tokens."""
    if config.model_type not in HEADS:
        raise ModelError(unknown("masked language model family", config.model_type, HEADS))


def load_masked_lm(
    name: str, *, fresh_head: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A masked language model in float32 and eval mode. With `fresh_head`, a head that is not
    there is drawn from torch's generator; without, it must be. Raises ModelError."""
    refuse_inputs(name, load_config(name, trust_remote_code=trust_remote_code))
    model, found = pretrained(AutoModelForMaskedLM, name, trust_remote_code=trust_remote_code)
    check_family(model.config)
    if found["missing_keys"] and not fresh_head:
        raise ModelError(
            f"{name} has no masked language model head (its weights lack "
            f"{', '.join(sorted(found['missing_keys'])[:3])}): fine-tune it with "
            "--task masked_lm first"
        )
    return model.eval()


def around(model: PreTrainedModel, seed: int, *, like: nn.Module | None = None) -> PreTrainedModel:
    """A masked language model around the encoder of `model`, which both then share. Its head is
    fresh, or as far as it fits that of `like`; its decoder the word embeddings.

    Raises ModelError for a family we don't know."""
    check_family(model.config)
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForMaskedLM.from_config(config)
    inside = f"{made.base_model_prefix}."
    held = dict(like.named_parameters()) if like is not None else {}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            theirs = held.get(name)
            if name.startswith(inside) or theirs is None or theirs.shape != parameter.shape:
                continue
            parameter.copy_(theirs)
    setattr(made, made.base_model_prefix, model.base_model)
    made.tie_weights()
    return made.eval()
