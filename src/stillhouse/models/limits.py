"""What a model can be given: how many tokens, which token types, whose ids, filled up with what.

Each is asked of the model itself (its embeddings, its config's values), never of a list of
families.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import ModelError


def positions(model: nn.Module) -> int | None:
    """The most tokens that a row may have; None for a model without a limit.

    RoBERTa's relatives count positions from the id of padding on: the first token has the one after
    it, so that many places of the table are no token's.
    """
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - _first_position(model, limit)


def _first_position(model: nn.Module, rows: int) -> int:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings":
            pad, weight = getattr(module, "padding_idx", None), getattr(module, "weight", None)
            if isinstance(pad, int) and isinstance(weight, Tensor) and len(weight) == rows:
                return pad + 1
    return 0


def max_tokens(model: nn.Module, asked: int) -> int:
    """`asked`, or fewer where the model has fewer positions."""
    limit = positions(model)
    return asked if limit is None else min(asked, limit)


def takes_token_types(model: nn.Module) -> bool:
    """Whether a model tells a text's second segment from its first. One with a single type gives it
    to all tokens by itself."""
    types = getattr(getattr(model, "config", None), "type_vocab_size", None)
    return isinstance(types, int) and types > 1


def tokenizer_for(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer without token types where the model has none to choose from: a user passes on
    to the model whatever the tokenizer gives."""
    names = tokenizer.model_input_names
    if "token_type_ids" not in names or takes_token_types(model):
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.model_input_names = [name for name in names if name != "token_type_ids"]
    return own


def check_tokenizer(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError where the tokenizer's ids, or how it fills rows up, don't suit the
    model."""
    check_vocabulary(model, tokenizer)
    check_padding(model, tokenizer)


def check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError where the tokenizer, with the tokens that were added to it, has ids that
    the model has no embeddings for."""
    words = _word_embeddings(model)
    rows = None if words is None else len(words)
    most = max(tokenizer.get_vocab().values(), default=-1) + 1
    if rows is not None and most > rows:
        raise ModelError(
            f"the tokenizer has {most} tokens, the model's embeddings have {rows} rows: call "
            f"model.resize_token_embeddings({most}), and train and save the model again"
        )


def _word_embeddings(model: Any) -> Tensor | None:
    try:
        found = getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):  # none, or it doesn't say which
        return None
    return found if isinstance(found, Tensor) else None


def check_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError where rows padded by the tokenizer would mislead the model."""
    if tokenizer.padding_side != "right":
        raise ModelError(
            "the tokenizer pads on the left: only models padded on the right work here"
        )
    mine = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else None
    theirs = getattr(getattr(model, "config", None), "pad_token_id", None)
    if theirs is not None and theirs != (mine or 0):
        raise ModelError(
            f"the tokenizer pads with id {mine or 0}, the model's config says {theirs}: "
            "make pad_token_id in config.json and the tokenizer's pad token the same"
        )
