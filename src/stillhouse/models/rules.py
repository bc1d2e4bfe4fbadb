"""The rules that a model's generation_config.json sets for its texts: followed with transformers'
own processors, so that a text is the one that the model's `generate` writes.

Axes: T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    ExponentialDecayLengthPenalty,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

Rules = tuple[tuple[str, Any], ...]  # names of settings and their values
# In the order in which `generate` applies them; the value that means nothing.
FOLLOWED: dict[str, Any] = {
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
NOT_FOLLOWED: dict[str, Any] = {
    "do_sample": False,
    "forced_eos_token_id": None,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": None,
    "dola_layers": None,
    "guidance_scale": 1.0,
    "renormalize_logits": False,
    "constraints": None,
    "force_words_ids": None,
    "stop_strings": None,
    "watermarking_config": None,
    "token_healing": False,
}
DRAWN = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
         "eta_cutoff")  # fmt: skip
BEAMS = 5  # where neither a run nor the model says


@dataclass(frozen=True)
class Search:
    """How a model's texts are searched for (see `Decoding`)."""

    beams: int = BEAMS
    length_penalty: float = 1.0
    early_stopping: bool | str = "never"


def search_of(model: Any, *, beams: int | None, length_penalty: float | None) -> Search:
    """A run's own settings, then the model's."""
    own = getattr(model, "generation_config", None)
    given = {
        "beams": beams or getattr(own, "num_beams", None),
        "length_penalty": getattr(own, "length_penalty", None)
        if length_penalty is None
        else length_penalty,
        "early_stopping": getattr(own, "early_stopping", None),
    }
    return Search(**{name: value for name, value in given.items() if value is not None})


def keep_search(model: Any, search: Search, *, max_tokens: int | None) -> None:
    """Makes `generate` search for a model's texts as they were searched for here; its own rules
    stay."""
    config = model.generation_config
    several = search.beams > 1  # transformers refuses to save what means nothing with one
    config.update(
        num_beams=search.beams,
        length_penalty=search.length_penalty if several else None,
        early_stopping=search.early_stopping if several else None,
        do_sample=False,
        **dict.fromkeys(DRAWN),
    )
    if max_tokens is not None:
        config.update(max_new_tokens=max_tokens)


def own_settings(model: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's generation settings say of `names`, where it is not what means nothing."""
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in names}
    return {
        name: value
        for name, value in found.items()
        if value is not None and value != names[name] and value != []
    }


def not_followed(model: PreTrainedModel) -> list[str]:
    """Settings of a model under which `generate` would write other texts than are written here."""
    return [*own_settings(model, NOT_FOLLOWED)]


def rules_of(model: PreTrainedModel, ends: Sequence[int]) -> tuple[Rules, list[int]]:
    """The rules that a model sets, and tokens that it never writes: single bad words, which cost
    nothing to leave out."""
    found = own_settings(model, FOLLOWED)
    words: list[list[int]] = found.get("bad_words_ids", [])
    never = [ids[0] for ids in words if len(ids) == 1 and ids[0] not in ends]
    never += [i for i in found.get("suppress_tokens", []) if i not in ends]
    found["bad_words_ids"] = [ids for ids in words if len(ids) > 1]
    found["suppress_tokens"] = [i for i in found.get("suppress_tokens", []) if i in ends]
    return tuple((name, found[name]) for name in FOLLOWED if found.get(name)), never


def processors(
    rules: Rules, source_T: Tensor, *, ends: Sequence[int], begins: int, first: int | None
) -> LogitsProcessorList:
    """What applies the rules to a text of one source: `begins` tokens stand before it, a prompt or
    a start token; `first` always comes first, if it is given."""
    stop = torch.tensor(list(ends), device=source_T.device)
    source_1T: Any = source_T[None]
    device = str(source_T.device)
    late = begins + (begins <= 1 and first is not None)
    make: dict[str, Any] = {
        "sequence_bias": lambda v: SequenceBiasLogitsProcessor(v),
        "encoder_repetition_penalty": lambda v: EncoderRepetitionPenaltyLogitsProcessor(
            float(v), source_1T
        ),
        "repetition_penalty": lambda v: RepetitionPenaltyLogitsProcessor(float(v)),
        "no_repeat_ngram_size": lambda v: NoRepeatNGramLogitsProcessor(v),
        "encoder_no_repeat_ngram_size": lambda v: EncoderNoRepeatNGramLogitsProcessor(v, source_1T),
        "bad_words_ids": lambda v: NoBadWordsLogitsProcessor(v, stop),
        "min_length": lambda v: MinLengthLogitsProcessor(v, stop, device=device),
        "min_new_tokens": lambda v: MinNewTokensLengthLogitsProcessor(
            begins, v, stop, device=device
        ),
        "exponential_decay_length_penalty": lambda v: ExponentialDecayLengthPenalty(
            tuple(v), stop, begins
        ),
        "suppress_tokens": lambda v: SuppressTokensLogitsProcessor(v, device=device),
        "begin_suppress_tokens": lambda v: SuppressTokensAtBeginLogitsProcessor(
            v, late, device=device
        ),
    }
    return LogitsProcessorList([make[name](value) for name, value in rules])
