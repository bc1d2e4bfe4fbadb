"""Building a student: fewer of a model's layers with their weights, or a fresh smaller shape.

"Layer k" is block k, counted from 1, everywhere.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from stillhouse.core.config import StudentConfig
from stillhouse.core.errors import ModelError
from stillhouse.models.shapes import (
    COUNT,
    Stack,
    all_layers_are_one,
    by_layer,
    copy_embeddings,
    cut_settings,
    encoder_decoder,
    reshape,
    stacks,
    taken,
)


def choose_layers(total: int, count: int, keep: str, *, from_first: bool = False) -> list[int]:
    """Which `count` of `total` layers stay, 1-based and rising.

    alternate: evenly spread, the last one among them (6 -> 3 gives 2, 4, 6); with `from_first`, the
    first one (1, 3, 5). Raises ModelError if there are not that many.
    """
    if count > total:
        raise ModelError(_larger(count, total))
    if keep == "first":
        return list(range(1, count + 1))
    if keep == "last":
        return list(range(total - count + 1, total + 1))
    if from_first:
        return [1 + i * total // count for i in range(count)]
    return [round(i * total / count) for i in range(1, count + 1)]


def _larger(count: int, total: int) -> str:
    return f"a student of {count} layers is larger than its source's {total}"


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a model's blocks and its dotted name. Raises ModelError if there is none."""
    total = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name, module
    raise ModelError(
        f"can't find the layers of {type(model).__name__}: name a student model instead"
    )


def like(source: PreTrainedModel, config: Any, seed: int = 0) -> PreTrainedModel:
    """An untrained model of the class of `source`, of the shape that `config` says. One that
    writes has its settings of generation, and an output layer of its own where `source` has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(source)._from_config(config)  # pyright: ignore
        if not source.can_generate():
            return made
        made.generation_config = copy.deepcopy(source.generation_config)
        if _tied(made) and not _tied(source):  # T5 1.1, whose config says that it is tied
            layer: Any = made.get_output_embeddings()
            fresh_VH = torch.empty_like(layer.weight).normal_(std=layer.weight.shape[1] ** -0.5)
            layer.weight = nn.Parameter(fresh_VH)
        return made


def _tied(model: Any) -> bool:
    """Whether the output layer is the embeddings of the words that are written."""
    layer = model.get_output_embeddings()
    side = model.get_decoder() if encoder_decoder(model) else model
    return layer is not None and layer.weight is side.get_input_embeddings().weight


def _check_inside(layers: list[int], total: int) -> None:
    if layers and not (layers[0] >= 1 and layers[-1] <= total):
        raise ModelError(f"layers {layers} are not all among the source's 1 to {total}")


def take_layers(
    source: PreTrainedModel, layers: list[int], decoder_layers: list[int] | None = None
) -> PreTrainedModel:
    """A model with only `layers` of `source` (of an encoder-decoder, those of its encoder and
    `decoder_layers`, the same if left out); every weight that both have is copied."""
    config: Any = copy.deepcopy(source.config)
    if all_layers_are_one(config):
        _check_inside(layers, config.num_hidden_layers)
        config.num_hidden_layers = len(layers)
        student = _made(source, config)
        student.load_state_dict(source.state_dict())
        return student.eval()
    if encoder_decoder(source):
        sides = (*stacks(source),)
        chosen = [layers, layers if decoder_layers is None else decoder_layers]
    else:
        name, module = blocks(source)
        sides, chosen = (Stack(name, COUNT, module),), [layers]
    for side, kept in zip(sides, chosen, strict=True):
        _check_inside(kept, len(side))
    cut_settings(config, layers, len(sides[0]))
    for side, kept in zip(sides, chosen, strict=True):
        setattr(config, side.setting, len(kept))
    student = _made(source, config)
    wanted = student.state_dict()
    pairs = zip(sides, chosen, strict=True)
    places = {name: kept for side, kept in pairs for name in side.lists(source)}
    weights = taken(source.state_dict(), wanted, places)
    lost = sorted(weights.keys() - wanted.keys())
    if lost:  # ModernBERT's first block has no norm before its attention
        raise ModelError(
            f"layer {layers[0]} of a {config.model_type} can't be a first one, which has no "
            f"{lost[0].removeprefix(f'{sides[0].name}.0.')}: keep layer 1 too "
            "(student.layers=[1, ...], or student.keep=first)"
        )
    # ESM's map of contacts has an entry for every head of every layer: nothing of it is left
    fits = {k: held if held.shape == wanted[k].shape else wanted[k] for k, held in weights.items()}
    student.load_state_dict(fits)
    return student.eval()


def _made(source: PreTrainedModel, config: Any, seed: int = 0) -> PreTrainedModel:
    """`like`; raises ModelError where the family has no model of that shape."""
    try:
        return like(source, config, seed)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as e:
        said = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise ModelError(f"there is no {config.model_type} of that shape: {said}") from e


def fresh(source: PreTrainedModel, shape: StudentConfig, seed: int) -> PreTrainedModel:
    """An untrained model like `source` in the asked shape, with its embeddings if they fit."""
    config: Any = copy.deepcopy(source.config)
    count = shape.layers if isinstance(shape.layers, int) else None
    if encoder_decoder(source):
        encoder, decoder = stacks(source)
        own = shape.decoder_layers if isinstance(shape.decoder_layers, int) else None
        setattr(config, encoder.setting, count or len(encoder))
        setattr(config, decoder.setting, own or count or len(decoder))
    else:
        total = config.num_hidden_layers
        if count is not None and count != total:
            if count > total and by_layer(config, total):
                raise ModelError(_larger(count, total))
            cut_settings(config, list(range(1, count + 1)), total)
            _set_layers(config, count)
    reshape(config, width=shape.width, ffn=shape.ffn, heads=shape.heads)
    student = _made(source, config, seed)
    if not shape.fresh and (source.can_generate() or not shape.width or _as_wide(source, shape)):
        copy_embeddings(source, student)
    return student.eval()


def _as_wide(source: PreTrainedModel, shape: StudentConfig) -> bool:
    return shape.width == source.config.hidden_size


def _set_layers(config: Any, count: int) -> None:
    """Raises ModelError for a family that counts its layers in another way (Funnel's blocks)."""
    try:
        setattr(config, COUNT, count)
    except (NotImplementedError, AttributeError):
        raise ModelError(
            f"a {config.model_type} can't have another number of layers: name a student model "
            "instead"
        ) from None


# BERT's names in a block, and DistilBERT's.
NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def distilbert(source: Any, layers: list[int], seed: int) -> PreTrainedModel:
    """A DistilBERT with `layers` of a BERT: no token types, no pooler (Sanh et al. 2019, sec. 3).

    The vector of the first token type, which every token of a single text got, is added to the
    positions rather than lost. A classifier's head is fresh: it would have read the pooler.
    """
    old = source.config
    if old.model_type != "bert":
        raise ModelError(f"family distilbert is made of a BERT, not of a {old.model_type}")
    if old.hidden_act != "gelu":
        raise ModelError(f"family distilbert has gelu, this BERT has {old.hidden_act}")
    _check_inside(layers, old.num_hidden_layers)
    masked = type(source).__name__.endswith("ForMaskedLM")
    names = ("id2label", "label2id", "problem_type")
    config = DistilBertConfig(
        vocab_size=old.vocab_size,
        max_position_embeddings=old.max_position_embeddings,
        dim=old.hidden_size,
        n_layers=len(layers),
        n_heads=old.num_attention_heads,
        hidden_dim=old.intermediate_size,
        dropout=old.hidden_dropout_prob,
        attention_dropout=old.attention_probs_dropout_prob,
        initializer_range=old.initializer_range,
        pad_token_id=old.pad_token_id,
        tie_word_embeddings=old.tie_word_embeddings,
        **({} if masked else {name: getattr(old, name) for name in names}),
    )
    kind = DistilBertForMaskedLM if masked else DistilBertForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student: Any = kind._from_config(config)
    with torch.no_grad():
        mine, theirs = student.distilbert.embeddings, source.base_model.embeddings
        mine.word_embeddings.load_state_dict(theirs.word_embeddings.state_dict())
        types = theirs.token_type_embeddings.weight
        mine.position_embeddings.weight.copy_(theirs.position_embeddings.weight + types[0])
        mine.LayerNorm.load_state_dict(theirs.LayerNorm.state_dict())
        blocks_of = source.base_model.encoder.layer
        for block, k in zip(student.distilbert.transformer.layer, layers, strict=True):
            for name, new in NAMES.items():
                held = blocks_of[k - 1].get_submodule(name).state_dict()
                block.get_submodule(new).load_state_dict(held)
        if masked:
            head = source.cls.predictions
            student.vocab_transform.load_state_dict(head.transform.dense.state_dict())
            student.vocab_layer_norm.load_state_dict(head.transform.LayerNorm.state_dict())
            student.vocab_projector.load_state_dict(head.decoder.state_dict())
    return student.eval()


def build(source: PreTrainedModel, shape: StudentConfig, *, seed: int = 0) -> PreTrainedModel:
    """A student of `shape` from `source`. With no shape at all: half of its layers, alternate; of
    an encoder-decoder `layers` counts for both sides, `decoder_layers` for its decoder only (by
    itself it leaves the encoder whole)."""
    if shape.decoder_layers is not None and not encoder_decoder(source):
        raise ModelError(
            f"a {source.config.model_type} has no decoder beside its encoder: give student.layers "
            "without student.decoder_layers"
        )
    if shape.width or shape.ffn or shape.heads:
        return fresh(source, shape, seed)
    if encoder_decoder(source) and shape.family == "same":
        encoder, decoder = map(len, stacks(source))
        only = shape.layers is None and shape.decoder_layers is not None
        layers = _chosen(encoder if only else shape.layers, encoder, shape.keep)
        own = shape.layers if shape.decoder_layers is None else shape.decoder_layers
        student = take_layers(source, layers, _chosen(own, decoder, shape.keep))
    else:
        total = source.config.num_hidden_layers
        layers = _chosen(shape.layers, total, shape.keep, from_first=_first_is_bare(source))
        made = distilbert(source, layers, seed) if shape.family == "distilbert" else None
        student = made or take_layers(source, layers)
    return like(student, student.config, seed).eval() if shape.fresh else student


def _first_is_bare(source: PreTrainedModel) -> bool:
    """Whether the first block lacks a part that the others have (ModernBERT's has no norm before
    its attention, as the embeddings have one), so that no other can stand in its place."""
    if all_layers_are_one(source.config):
        return False
    first, *others = (set(block.state_dict()) for block in blocks(source)[1])
    return any(other - first for other in others)


def _chosen(
    asked: int | list[int] | None, total: int, keep: str, *, from_first: bool = False
) -> list[int]:
    """The layers of `total` that a shape asks for; half of them where it says nothing."""
    if isinstance(asked, list):
        return asked
    return choose_layers(total, asked or max(1, total // 2), keep, from_first=from_first)


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
