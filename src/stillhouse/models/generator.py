"""Models that write: loading one, and its vocabulary's scores of chosen places only.

A vocabulary's head is most of a small model's work and memory, and only supervised tokens need it.
The output layer's forward is therefore replaced while the model runs: what is not scored never
meets the vocabulary, whatever the model does before and after that layer.

Axes: N scored places, K choices, V vocabulary, H hidden, P probes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from stillhouse.core.errors import ModelError, unknown
from stillhouse.core.head import Head
from stillhouse.models.load import load_config, pretrained

GeneratorKind = Literal["seq2seq", "causal_lm"]
AUTO: dict[str, Any] = {"seq2seq": AutoModelForSeq2SeqLM, "causal_lm": AutoModelForCausalLM}
# What configs call a factor on the scores (Cohere multiplies by its, Granite divides by its), and
# a soft cap. Which of them a model means, and how, is found by trying.
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "logit_softcapping")
TOLERANCE = 1e-4  # of the largest score: how near the head's are to the model's own
PROBES = 8
WIDE = 50.0  # size of the products that a soft cap is looked for with


def load_generator(
    name: str, kind: GeneratorKind, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """An encoder-decoder (seq2seq) or a language model (causal_lm) in float32 and eval mode.
    Raises ModelError for a model of another kind, and for one whose weights are not all there."""
    if kind not in AUTO:
        raise ModelError(unknown("kind of generator", kind, AUTO))
    config = load_config(name, trust_remote_code=trust_remote_code)
    if not (trust_remote_code and getattr(config, "auto_map", None)):
        _check_kind(name, kind, config)
    model, found = pretrained(AUTO[kind], name, trust_remote_code=trust_remote_code)
    other = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    if lost := sorted([*found["missing_keys"], *other]):
        if all(_is_head(model, key) for key in lost):
            raise ModelError(
                f"{name} has no vocabulary head (its weights lack {lost[0]}): it was saved for "
                "another use; give the language model itself"
            )
        raise ModelError(
            f"{name}: its weights are not those its config.json describes ({len(lost)} missing "
            f"or of another shape, {lost[0]} among them): save the model again"
        )
    return model.eval()


def _check_kind(name: str, kind: GeneratorKind, config: Any) -> None:
    """Raises ModelError where transformers would build another model than was stored."""
    family = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        found = "seq2seq" if family in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else None
    elif family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        found = None  # it reads to both sides: as a language model it would see the answer
    else:
        found = "causal_lm" if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None
    if found == kind:
        return
    if found is not None:
        what = {"seq2seq": "an encoder-decoder", "causal_lm": "a language model without an encoder"}
        raise ModelError(f"{name} is a {family}, {what[found]}: take --task {found}")
    raise ModelError(
        f"{name} is a {family}, which writes no text: give a seq2seq model (Marian, BART, T5, ...) "
        "or a causal language model (GPT-2, Llama, ...)"
    )


def _is_head(model: PreTrainedModel, key: str) -> bool:
    layer = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is layer]
    return any(key.startswith(f"{name}.") for name in names)


def writes(model: nn.Module) -> bool:
    """Whether a model is a generator: an encoder-decoder or a causal language model."""
    return isinstance(model, PreTrainedModel) and model.can_generate()


def used_choices(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id a tokenizer can give, and one: a vocabulary padded beyond it is cut there."""
    return max(tokenizer.get_vocab().values()) + 1


@contextmanager
def _replaced(layer: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, calling `layer` calls `forward`."""
    held = layer.__dict__.get("forward")
    object.__setattr__(layer, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(layer, "forward")
        if held is not None:
            object.__setattr__(layer, "forward", held)


def _output_layer(model: nn.Module) -> Any:
    found = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if found is None:
        raise ModelError(f"a {type(model).__name__} has no output layer over its vocabulary")
    return found


def _run(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's scores, without a cache of keys and values."""
    cached = "use_cache" in inspect.signature(model.forward).parameters
    return model(**inputs, **({"use_cache": False} if cached else {})).logits


def _places(inputs: Mapping[str, Tensor]) -> int:
    """B x T of the tokens whose next ones are scored."""
    return inputs["decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"].numel()


def _select(hidden: Tensor, scored_N: Tensor, places: int) -> Tensor:
    """1 x N x H of B x T x H."""
    flat = hidden.flatten(0, -2)
    if len(flat) != places:
        raise ModelError(
            f"the output layer reads {len(flat)} places of {places} tokens: this model's scores "
            "can't be told apart by token"
        )
    return flat.index_select(0, scored_N)[None]


def states_of_rows(
    model: nn.Module, inputs: Mapping[str, Tensor], scored_N: Int[Tensor, " N"]
) -> Float[Tensor, "N H"]:
    """What enters the output layer at the scored places, flat in B x T of the decoder's tokens.

    Whatever the model does before that layer (T5's scaling) is in it. Raises ModelError for a
    model that calls its output layer not once, or not for every token.
    """
    layer, places = _output_layer(model), _places(inputs)
    found: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        found.append(_select(hidden, scored_N, places))
        return hidden.new_empty(1, 0, len(layer.weight))

    with _replaced(layer, forward):
        _run(model, inputs)
    if len(found) != 1:
        raise ModelError(
            f"a {type(model).__name__} calls its output layer {len(found)} times, not once"
        )
    return found[0][0]


def own_rows(
    model: nn.Module, inputs: Mapping[str, Tensor], scored_N: Int[Tensor, " N"]
) -> Float[Tensor, "N V"]:
    """Scores of the scored places, flat in B x T of the decoder's tokens, by the model's own
    output layer and whatever it does after it. Raises ModelError as `states_of_rows`."""
    layer, places = _output_layer(model), _places(inputs)
    own, calls = layer.forward, []

    def forward(hidden: Tensor) -> Tensor:
        calls.append(1)
        return own(_select(hidden, scored_N, places))

    with _replaced(layer, forward):
        scores = _run(model, inputs)
    if len(calls) != 1 or scores.shape[:-1] != (1, len(scored_N)):
        raise ModelError(
            f"a {type(model).__name__} calls its output layer {len(calls)} times, not once, or "
            "moves its scores afterwards"
        )
    return scores[0]


def head_of(model: nn.Module, choices: int | None = None) -> Head | None:
    """The head that gives a model's scores of its first `choices` from `states_of_rows`, with the
    model's own weights in it; None where no head of ours gives the same (a low-rank update, a norm
    inside): its scores are then its own forward's.

    Compared with the model's own scores when a model is first seen, and remembered. Raises
    ModelError where the tokenizer has more choices than the model.
    """
    layer: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    weight_VH = getattr(layer, "weight", None)
    if not isinstance(weight_VH, Tensor) or weight_VH.ndim != 2:
        return None
    if choices is not None and choices > len(weight_VH):
        raise ModelError(
            f"the tokenizer has ids up to {choices - 1}, the model's vocabulary ends at "
            f"{len(weight_VH) - 1}: they don't belong together"
        )
    biases = [getattr(layer, "bias", None), getattr(model, "final_logits_bias", None)]
    biases = [bias for bias in biases if isinstance(bias, Tensor)]
    if len(biases) > 1:  # their sum would not follow the weights
        return None
    plain = Head(weight_VH, biases[0].flatten() if biases else None, choices=choices)
    known = _KNOWN.get(model)
    if known is None or known[0] is not layer:
        known = (layer, _transform(model, layer, replace(plain, choices=None)))
        _KNOWN[model] = known
    return None if known[1] is None else replace(plain, scale=known[1][0], softcap=known[1][1])


Transform = tuple[float, float | None]  # scale and soft cap
# What was found of models that are still there, and of which output layer.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[nn.Module, Transform | None]] = WeakKeyDictionary()


@torch.no_grad()
def _transform(model: nn.Module, layer: Any, plain: Head) -> Transform | None:
    """The first scale and soft cap with which `plain` gives the model's own scores."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for scale, softcap in _transforms(model):
            if _agrees(model, layer, replace(plain, scale=scale, softcap=softcap)):
                return scale, softcap
    finally:
        for module in training:
            module.training = True
    return None


def _transforms(model: Any) -> Iterator[Transform]:
    """Scale and soft cap of a head, as far as the config names any; plain first."""
    config = model.config.get_text_config(decoder=True)

    def named(names: tuple[str, ...]) -> list[float]:
        values = [getattr(config, name, None) for name in names]
        return [float(v) for v in values if isinstance(v, int | float) and v]

    caps: list[float | None] = [None, *named(CAPS)]
    scales = [1.0, *(each for value in named(FACTORS) for each in (value, 1 / value))]
    yield from ((scale, cap) for cap in caps for scale in scales)


def _agrees(model: Any, layer: Any, head: Head) -> bool:
    """Whether `head` gives the model's own scores: after the output layer, of products wide enough
    to meet a soft cap; and all the way, from states of the model's own."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(head.weight_VH), (1, PROBES), generator=draw).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    all_N = torch.arange(PROBES, device=ids.device)
    try:
        states_NH, own_NV = states_of_rows(model, inputs, all_N), own_rows(model, inputs, all_N)
    except ModelError:
        return False
    wide_NV = WIDE * torch.randn(PROBES, len(head.weight_VH), generator=draw).to(own_NV)
    with _replaced(layer, lambda hidden: wide_NV[None]):
        transformed_NV = _run(model, inputs)[0]
    if head.bias_V is not None and layer.bias is None:
        wide_NV = wide_NV + head.bias_V
    mine = (head(states_NH), head.transform(wide_NV[:, : head.width].float()))
    return all(
        torch.allclose(a, b[:, : head.width].float(), rtol=0, atol=TOLERANCE * float(a.abs().max()))
        for a, b in zip(mine, (own_NV, transformed_NV), strict=True)
    )
