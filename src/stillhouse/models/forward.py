"""A model's outputs for a batch: by its own forward, or by the faster equal of `encoder.py`.

Rows are scored by a classifier's head, by the vocabulary's head on the batch's scored tokens only
(masked language models, models that write), or by a head that says where a span begins and where it
ends.

Axes: N scored rows, K choices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.errors import ModelError
from stillhouse.core.head import Factored
from stillhouse.core.types import Batch, States, StudentOutput, Tap
from stillhouse.models.dropout import dropout
from stillhouse.models.encoder import Notes, Stop, encode, encoder_layers
from stillhouse.models.families import Random, family_of, known_family
from stillhouse.models.generator import head_of, own_rows, states_of_rows, writes
from stillhouse.models.limits import takes_token_types
from stillhouse.models.masked import vocabulary_scores
from stillhouse.models.shapes import encoder_decoder
from stillhouse.models.taps import reading
from stillhouse.models.weights import Joined, Pair, joined

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
NOTHING: frozenset[Tap] = frozenset()
IMPOSSIBLE = -1e4  # the score of a place where no span may begin or end: finite, its share is 0


def _is_classifier(model: nn.Module) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")


def _answers_spans(model: nn.Module) -> bool:
    return type(model).__name__.endswith("ForQuestionAnswering")


def has_fast_path(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    family = family_of(config)
    if family is None:
        return False
    if _answers_spans(model) and not hasattr(model, "qa_outputs"):
        return False
    return (
        type(model).__name__.endswith(
            ("ForSequenceClassification", "ForMaskedLM", "ForQuestionAnswering")
        )
        and getattr(config, family.activation) == "gelu"
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        and not getattr(config, "is_decoder", False)
    )


def needed(reads: Collection[Tap]) -> Stop:
    """How far a model must run for what is read."""
    layer = max((tap.layer for tap in reads), default=0)
    return Stop(layer, layer > 0 and Tap("hidden", layer) not in reads)


def fast_layers(model: Any, stop: Stop | None = None) -> list[Joined]:
    """The layers of a model's blocks and (a classifier's) head, in the order its fast path takes
    them; with `stop`, as far as that."""
    layers = encoder_layers(model.base_model, stop)
    if stop is not None or not _is_classifier(model):
        return layers
    return layers + known_family(model.config).head_layers(model)


def fast_weights(model: nn.Module, precision: str, stop: Stop | None = None) -> list[Pair]:
    """What `run` takes as `weights`: to be made once where a model answers many batches."""
    return joined(fast_layers(model, stop), DTYPES[precision])


def run(
    model: nn.Module,
    batch: Batch,
    *,
    precision: str,
    rng: Random = None,
    fast: bool = True,
    weights: Sequence[Pair] | None = None,
    reads: Collection[Tap] = NOTHING,
    scored: bool = True,
    choices: int | None = None,
) -> StudentOutput:
    """Scores in float32, and what `reads` name. `precision` is bf16 or float32; with a generator,
    dropout is on. Without `scored`, there are no scores, and nothing is computed for them.
    `choices`: the first so many of a model that writes are scored; its scores are not multiplied
    out where its head is known.

    The model's own forward is used where there is no fast path; its dropout follows
    `model.training` and torch's generator. `weights` are those of the fast path, if made before.
    """
    if writes(model):
        return _written(model, batch, precision, choices)
    batch = _accepted(model, batch)
    inputs = batch.inputs
    if fast and has_fast_path(model) and readable_fast(reads):
        stop = None if scored else needed(reads)
        pairs = iter(fast_weights(model, precision, stop) if weights is None else weights)
        return _fast(model, batch, pairs, precision, rng, frozenset(reads), stop)
    device = next(iter(inputs.values())).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        with (
            reading(model, reads) if reads else contextlib.nullcontext({}) as found,
            _exact_head(model) if precision == "bf16" else contextlib.nullcontext(),
        ):
            scores_NK = _own_scores(model, batch) if scored else _unscored(model, batch)
    if missed := sorted(frozenset(reads) - found.keys()):  # SqueezeBERT calls its blocks unseen
        raise ModelError(
            f"{missed[0].what} of layer {missed[0].layer} can't be read in a "
            f"{type(model).__name__}: use terms of the answers, or another model"
        )
    return StudentOutput(scores_NK.float(), _states(found, inputs) if reads else None)


@contextlib.contextmanager
def _exact_head(model: Any) -> Iterator[None]:
    """A classifier's last layer in float32 under bf16 autocast; see `last_linear`."""
    inside = {id(module) for module in model.base_model.modules()}
    width = getattr(model.config, "num_labels", None)
    last = (
        [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear)
            and module.out_features == width
            and id(module) not in inside
        ]
        if _is_classifier(model)
        else []
    )

    def in_float32(layer: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.float()
            return nn.functional.linear(inputs[0].float(), layer.weight.float(), bias)

    hooks = [layer.register_forward_hook(in_float32) for layer in last]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def readable_fast(reads: Collection[Tap]) -> bool:
    return all(tap.what != "module" for tap in reads)


def _written(model: Any, batch: Batch, precision: str, choices: int | None) -> StudentOutput:
    """Scores of the batch's scored tokens, of a model that writes."""
    places_N = _scored(batch)
    head = head_of(model, choices)
    device = next(iter(batch.inputs.values())).device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        if head is None:
            scores_NK = own_rows(model, batch.inputs, places_N)
            return StudentOutput(scores_NK[:, :choices].float())
        hidden_NH = states_of_rows(model, batch.inputs, places_N)
    return StudentOutput(Factored(hidden_NH.float(), head, precision))


def _accepted(model: Any, batch: Batch) -> Batch:
    """The batch without token types where a model has none to choose from."""
    config = getattr(model, "config", None)
    if "token_type_ids" not in batch.inputs or config is None or takes_token_types(model):
        return batch
    inputs = {name: t for name, t in batch.inputs.items() if name != "token_type_ids"}
    return replace(batch, inputs=inputs)


def _fast(
    model: Any, batch: Batch, pairs: Iterator[Pair], precision: str, rng: Random,
    reads: frozenset[Tap], stop: Stop | None,
) -> StudentOutput:  # fmt: skip
    inputs, dtype, notes = batch.inputs, DTYPES[precision], Notes(reads)
    if stop is not None:
        encode(model.base_model, inputs, pairs, dtype, rng, notes, stop=stop)
        return StudentOutput(torch.zeros(len(batch.rows), 0), _states(notes.found, inputs))
    classifies = _is_classifier(model)
    last = encode(model.base_model, inputs, pairs, dtype, rng, notes, first_only=classifies)
    if classifies:
        scores_NK = known_family(model.config).head(model, last, pairs, rng)
    elif _answers_spans(model):
        own = getattr(model, "dropout", None)  # DistilBERT's head has one
        last = last if own is None else dropout(last, own.p, rng)
        by_token_BT2 = model.qa_outputs(last.float()).view(*inputs["input_ids"].shape, 2)
        scores_NK = span_scores(by_token_BT2.transpose(1, 2), batch)
    else:
        with torch.autocast(last.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            scores_NK = vocabulary_scores(model, last[_scored(batch)])
    states = _states(notes.found, inputs) if reads else None
    return StudentOutput(scores_NK.float(), states)


def _own_scores(model: Any, batch: Batch) -> Tensor:
    if _answers_spans(model):
        output = model(**batch.inputs)
        return span_scores(torch.stack([output.start_logits, output.end_logits], 1), batch)
    if batch.scored_N is None:
        return model(**batch.inputs).logits
    hidden = model.base_model(**batch.inputs).last_hidden_state
    return vocabulary_scores(model, hidden.flatten(0, 1)[batch.scored_N])


def span_scores(scores_B2T: Tensor, batch: Batch) -> Tensor:
    """Two rows an example, where its span begins and where it ends, over the tokens."""
    assert batch.answerable_BT is not None, "a span is looked for where it may be"
    held_B2T = scores_B2T.float().masked_fill(~batch.answerable_BT[:, None], IMPOSSIBLE)
    return held_B2T.flatten(0, 1)


def _unscored(model: Any, batch: Batch) -> Tensor:
    # T5's classifier makes what its decoder reads, and only it knows how
    inside = model if encoder_decoder(model) else model.base_model
    inside(**batch.inputs)
    return torch.zeros(len(batch.rows), 0)


def _scored(batch: Batch) -> Tensor:
    assert batch.scored_N is not None, "a masked language model scores chosen tokens"
    return batch.scored_N


def _states(found: Mapping[Tap, Tensor], inputs: Mapping[str, Tensor]) -> States:
    """Raises ModelError for states in which a token is not where it is in the batch (XLNet's have
    their axes the other way round, Funnel's grow shorter)."""
    mask_BT = inputs["attention_mask"].bool()
    for tap, value in found.items():
        if tap.what == "hidden" and value.shape[:2] != mask_BT.shape:
            raise ModelError(
                f"the states of layer {tap.layer} are not laid out by text and token: use terms of "
                "the answers, or another model"
            )
    return States(dict(found), mask_BT)


def scores(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    precision: str,
    rng: Random = None,
    fast: bool = True,
    weights: Sequence[Pair] | None = None,
) -> Tensor:
    """A classifier's scores of `inputs`, float32, N x K; see `run`."""
    batch = Batch(inputs, np.arange(len(next(iter(inputs.values())))))
    return run(model, batch, precision=precision, rng=rng, fast=fast, weights=weights).scores_NK


@contextlib.contextmanager
def training_mode(model: nn.Module, *, on: bool) -> Iterator[None]:
    """Switches dropout on or off inside the block, and back after it."""
    before = model.training
    model.train(on)
    try:
        yield
    finally:
        model.train(before)
