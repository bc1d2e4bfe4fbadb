"""A generator in the middle of writing: what it has read is kept, and its log-probabilities of the
next tokens come from its own forward.

Axes: S texts under way, R rows under way (S x B, a text's beams side by side), V vocabulary that is
scored, T tokens, H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from stillhouse.core.errors import ModelError
from stillhouse.core.precision import precision_of
from stillhouse.core.terms import Precision
from stillhouse.models.rules import Rules, processors, rules_of

Ids = Int[np.ndarray, " _"]  # texts differ in length


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens a search knows. Only ids under `choices` are scored (a padded vocabulary has
    more), `suppressed` are never written, `first` always comes first, for nothing (a language, in
    mBART and NLLB). The padding is never written, unless it is an end token too. What can't be
    written keeps its probability: the others are not scaled up. `start`: of the decoder. `rules`:
    of the model's own generation settings, which decide what is written next, and are no part of
    how likely it is."""

    pad: int
    ends: tuple[int, ...]
    start: int | None = None
    choices: int | None = None
    suppressed: tuple[int, ...] = ()
    first: int | None = None
    rules: Rules = ()

    @property
    def never(self) -> list[int]:
        return sorted({*self.suppressed, self.pad} - set(self.ends))


def vocabulary(
    model: PreTrainedModel,
    *,
    pad_id: int,
    choices: int | None = None,
    suppressed: Sequence[int] = (),
    forced_bos: int | None = None,
) -> Vocabulary:
    """Start, end and forced first tokens, and rules, as the model's settings have them. Raises
    ModelError without the first two."""
    ends, start = ends_of(model), _setting(model, "decoder_start_token_id")
    if not ends:
        raise ModelError("the model has no end token: set eos_token_id in its config.json")
    if model.config.is_encoder_decoder and start is None:
        raise ModelError(
            "the model has no start token: set decoder_start_token_id in its config.json"
        )
    first = _setting(model, "forced_bos_token_id") if forced_bos is None else forced_bos
    rules, never = rules_of(model, ends)
    never = sorted(i for i in {*suppressed, *never} if choices is None or i < choices)
    return Vocabulary(pad_id, ends, start, choices, tuple(never), first, rules)


def ends_of(model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens at which the model stops writing."""
    ends = _setting(model, "eos_token_id")
    return tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,)


def _setting(model: PreTrainedModel, name: str) -> Any:
    """As `generate` reads it: the generation's settings before the model's."""
    found = getattr(getattr(model, "generation_config", None), name, None)
    return getattr(model.config, name, None) if found is None else found


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and without gradients."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class Reader:
    """A model in the middle of texts: reads a token a row, says how likely each next one is."""

    def __init__(
        self,
        model: PreTrainedModel,
        sources: Sequence[Ids],
        words: Vocabulary,
        precision: Precision,
    ) -> None:
        self._model, self._words = model, words
        self._precision = precision_of(precision)
        self._of_encoder = bool(model.config.is_encoder_decoder)
        self._knows = set(inspect.signature(model.forward).parameters)
        ids_ST, self._mask_RT = padded(sources, words.pad, left=not self._of_encoder)
        self._ids_ST = ids_ST.to(model.device)
        self._mask_RT = self._mask_RT.to(model.device)
        self._hidden_RTH: Tensor | None = None
        self._cache: Any = None
        self._logits_RV: Tensor | None = None
        self._sources = [torch.from_numpy(np.asarray(each, np.int64)) for each in sources]
        self._rules = [self._processors(each) for each in self._sources] if words.rules else []

    def _processors(self, source_T: Tensor) -> Any:
        words, begins = self._words, 1 if self._of_encoder else len(source_T)
        return processors(
            words.rules,
            source_T.to(self._model.device),
            ends=words.ends,
            begins=begins,
            first=words.first,
        )

    def ruled(
        self, scores_RV: Tensor, prefix_SBT: np.ndarray, texts_S: np.ndarray, *, raw: bool
    ) -> Tensor:
        """What decides what comes next, R x V: the scores by the model's own rules. A search of
        several beams applies them to log-probabilities; with `raw` they are applied to what the
        model gave, as where one token is taken at a time. `texts_S`: which sources are under way.
        """
        if not self._rules:
            return scores_RV
        given_RV = self._logits_RV if raw else scores_RV
        assert given_RV is not None
        found = []
        beams = prefix_SBT.shape[1]
        for place, text in enumerate(texts_S):
            before_T = self._sources[text]
            if self._of_encoder:
                before_T = torch.tensor([self._words.start])
            prefix_BT = torch.from_numpy(prefix_SBT[place])
            ids_BT = torch.cat([before_T.expand(beams, -1), prefix_BT], dim=1).to(given_RV.device)
            rows = slice(place * beams, (place + 1) * beams)
            found.append(self._rules[text](ids_BT, given_RV[rows]))
        return torch.cat(found)

    def start(self) -> Tensor:
        """Log-probabilities of each text's first token, S x V."""
        if self._of_encoder:
            with self._autocast():
                encoded = self._model.get_encoder()(
                    input_ids=self._ids_ST, attention_mask=self._mask_RT, return_dict=True
                )
            self._hidden_RTH = encoded.last_hidden_state
            assert self._words.start is not None, "vocabulary() has seen to it"
            return self._forward(torch.full_like(self._ids_ST[:, :1], self._words.start))
        return self._forward(self._ids_ST)

    def read(self, tokens_R: Int[np.ndarray, " R"]) -> Tensor:
        """Log-probabilities of the token after these, R x V."""
        tokens_R1 = torch.from_numpy(tokens_R)[:, None].to(self._model.device)
        if not self._of_encoder:
            self._mask_RT = torch.nn.functional.pad(self._mask_RT, (0, 1), value=1)
        return self._forward(tokens_R1)

    def take(self, rows_R: Int[np.ndarray, " R"], *, same_texts: bool) -> None:
        """Goes on with these rows. Where a row's text stays the same, so does its source."""
        if same_texts and (rows_R == np.arange(len(rows_R))).all():
            return
        rows: Any = torch.from_numpy(rows_R).to(self._model.device)
        if same_texts and isinstance(self._cache, EncoderDecoderCache):
            self._cache.self_attention_cache.reorder_cache(rows)
            return
        self._cache.reorder_cache(rows)
        if not same_texts:
            self._mask_RT = self._mask_RT.index_select(0, rows)
            if self._hidden_RTH is not None:
                self._hidden_RTH = self._hidden_RTH.index_select(0, rows)

    def _forward(self, ids_RT: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"attention_mask": self._mask_RT}
        if self._of_encoder:
            inputs |= {
                "encoder_outputs": BaseModelOutput(self._hidden_RTH),
                "decoder_input_ids": ids_RT,
            }
        else:
            inputs |= {"input_ids": ids_RT}
            if "position_ids" in self._knows:
                places_RT = (self._mask_RT.cumsum(-1) - 1).clamp(min=0)
                inputs["position_ids"] = places_RT[:, -ids_RT.shape[1] :]
            if "logits_to_keep" in self._knows:
                inputs["logits_to_keep"] = 1
        with self._autocast():
            out = self._model(
                **inputs, past_key_values=self._cache, use_cache=True, return_dict=True
            )
        self._cache = out.past_key_values
        if not hasattr(self._cache, "reorder_cache"):
            raise ModelError(f"{type(self._model).__name__} keeps no cache that beams can share")
        if self._rules:
            logits_RV = out.logits[:, -1, : self._words.choices]
            self._logits_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
        return log_probabilities(out.logits[:, -1], self._words.choices)

    def _autocast(self) -> torch.autocast:
        device = self._model.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self._precision == "bf16")


def padded(
    sources: Sequence[Ids], pad: int, *, left: bool = False
) -> tuple[Int[Tensor, "S T"], Int[Tensor, "S T"]]:
    """Ids, padded to the longest, and which of them are real (1)."""
    longest = max(len(each) for each in sources)
    ids_ST = np.full((len(sources), longest), pad, np.int64)
    mask_ST = np.zeros((len(sources), longest), np.int64)
    for row, ids in enumerate(sources):
        place = slice(longest - len(ids), None) if left else slice(len(ids))
        ids_ST[row, place], mask_ST[row, place] = ids, 1
    return torch.from_numpy(ids_ST), torch.from_numpy(mask_ST)


def log_probabilities(logits: Float[Tensor, "*R W"], choices: int | None) -> Float[Tensor, "*R V"]:
    """Of the first `choices` of W tokens, float32 (float64 of scores that are)."""
    logits = logits[..., :choices]
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
