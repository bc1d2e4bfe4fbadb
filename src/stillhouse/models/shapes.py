"""What families call the parts of their shape, and where their blocks are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.core.errors import ModelError

# An encoder-decoder's two counts of layers; the widths and heads that a config may have, both of
# its stacks or all of them.
LAYERS = (
    ("encoder_layers", "decoder_layers"),
    ("num_layers", "num_decoder_layers"),
    ("num_encoder_layers", "num_decoder_layers"),
)
FFN = (
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("d_ff",),
    ("n_inner",),
    ("intermediate_size",),
    ("hidden_dim",),
    ("ffn_dim",),
    ("d_inner",),
    ("feed_forward_size",),
    ("ffn_hidden_size",),
)
HEADS = (
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("num_heads",),
    ("num_attention_heads",),
)
HEAD_WIDTH = ("d_kv", "head_dim", "d_head", "attention_head_size")
# Widths beside the model's own; those that equal it follow it.
BESIDE = (
    "pooler_hidden_size",
    "embedding_size",
    "input_embedding_size",
    "output_embedding_size",
    "word_embed_proj_dim",
    "classifier_hidden_size",
)
COUNT = "num_hidden_layers"
# What settings with an entry a layer are called: their length alone may be chance (DeBERTa's two
# kinds of attention in two layers); what lists some layers by their numbers is something else.
BY_LAYER = re.compile("layer|window|_types$|_modes$|heads|intermediate_size")
NUMBERS = re.compile("_only_|skip|exit|cross")
SHARED = "relative_attention_bias"  # of T5's first block, which all of its blocks add


@dataclass(frozen=True)
class Stack:
    """Blocks of one side of a model: their list's dotted name, and its count's in the config."""

    name: str
    setting: str
    blocks: nn.ModuleList

    def __len__(self) -> int:
        return len(self.blocks)

    def lists(self, model: nn.Module) -> list[str]:
        """The names of all lists with a part of each block: XLM keeps attentions, norms and
        feed-forwards in lists of their own."""
        parent, _, _ = self.name.rpartition(".")
        inside = model.get_submodule(parent).named_children()
        found = [n for n, m in inside if isinstance(m, nn.ModuleList) and len(m) == len(self)]
        return [f"{parent}.{name}" if parent else name for name in found]


def by_layer(config: Any, total: int) -> list[str]:
    """The settings of a config that have an entry for each of its `total` layers."""
    return [
        name
        for name in config.to_dict()
        if BY_LAYER.search(name)
        and not NUMBERS.search(name)
        and isinstance(held := getattr(config, name, None), list | tuple)
        and len(held) == total
    ]


def cut_settings(config: Any, layers: Sequence[int], total: int) -> None:
    """Leaves of every setting with an entry a layer those of `layers` (from 1)."""
    for name in by_layer(config, total):
        held = getattr(config, name)
        setattr(config, name, type(held)(held[k - 1] for k in layers))
    if getattr(config, "attention_types", None) and hasattr(config, "attention_layers"):
        # GPT-Neo makes the list of the layers' kinds from this one, in which they are counted
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]


def all_layers_are_one(config: Any) -> bool:
    """Whether all layers share one set of weights (ALBERT): any of them is as good."""
    return getattr(config, "num_hidden_groups", None) == 1


def encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def stacks(model: PreTrainedModel) -> tuple[Stack, Stack]:
    """The encoder's and the decoder's blocks. Raises ModelError if they can't be found."""
    settings = _first(model.config, LAYERS)
    sides = (model.get_encoder(), model.get_decoder())
    found = []
    for setting, side in zip(settings, sides, strict=False):
        total = getattr(model.config, setting)
        lists = {id(m) for m in side.modules() if isinstance(m, nn.ModuleList) and len(m) == total}
        names = [(name, m) for name, m in model.named_modules() if id(m) in lists]
        found += [Stack(name, setting, m) for name, m in names[:1]]  # pyright: ignore
    if len(found) != 2:
        raise ModelError(
            f"can't find the layers of {type(model).__name__}: name a student model instead"
        )
    return found[0], found[1]


def taken(
    held: Mapping[str, Tensor], wanted: Mapping[str, Tensor], places: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The weights `held` under the names they have where of the block lists in `places` only those
    blocks (from 1) are left. What a first block has for all of them (T5's relative positions, if
    `wanted`) goes to the new first one."""
    found: dict[str, Tensor] = {}
    new = {
        f"{name}.{k - 1}.": f"{name}.{i}."
        for name, layers in places.items()
        for i, k in enumerate(layers)
    }
    for key, tensor in held.items():
        if not key.startswith(tuple(f"{name}." for name in places)):
            found[key] = tensor
            continue
        prefix = next((p for p in new if key.startswith(p)), None)
        if prefix is not None:
            found[new[prefix] + key[len(prefix) :]] = tensor
    shared = [key for key in wanted.keys() - found.keys() if SHARED in key and key in held]
    return found | {key: held[key] for key in shared}


def reshape(config: Any, *, width: int | None, ffn: int | None, heads: int | None) -> None:
    """Gives a config another width, feed-forward width and count of heads; what is not
    given follows the width. Raises ModelError where they don't go together."""
    ffn_names, head_names = _named(config, FFN), _named(config, HEADS)
    if not ffn_names and ffn:
        raise ModelError(f"the feed-forward of a {config.model_type} follows its width: leave "
                         "student.ffn out")  # fmt: skip
    if not head_names:
        _widen(config, config.hidden_size, width or config.hidden_size, ffn_names, ffn)
        return
    old, old_heads = config.hidden_size, getattr(config, head_names[0])
    size = next((s for n in HEAD_WIDTH if (s := getattr(config, n, None))), old // old_heads)
    filled = size * old_heads == old  # all heads together are as wide as the model
    new = width or old
    count = heads or max(1, old_heads * new // old)
    if (filled or not hasattr(config, "d_kv")) and new % count:  # T5's may be of any width
        raise ModelError(f"a width of {new} is not a multiple of {count} heads: set student.heads")
    size = new // count if filled else size
    if getattr(config, "rope_parameters", None) and size % 2:
        raise ModelError(
            f"{count} heads of {size} can't be turned by their position, which takes pairs: set "
            "student.heads"
        )
    _widen(config, old, new, ffn_names, ffn)
    for name in head_names:
        setattr(config, name, count)
    for name in HEAD_WIDTH:
        if name in vars(config) and getattr(config, name):  # else it follows by itself
            setattr(config, name, size)
    if groups := getattr(config, "num_key_value_heads", None):
        fit = max(1, count * groups // old_heads)
        config.num_key_value_heads = next(g for g in range(fit, 0, -1) if count % g == 0)


def _widen(config: Any, old: int, new: int, ffn_names: tuple[str, ...], ffn: int | None) -> None:
    """Sets the width, and with it the feed-forward's and what else is as wide."""
    for name in ffn_names:
        held = getattr(config, name)
        if ffn or held is not None:  # GPT-2's: four times the width unless it is set
            setattr(config, name, ffn or held * new // old)
    for name in BESIDE:
        if getattr(config, name, None) == old:
            setattr(config, name, new)
    config.hidden_size = new


def ffn_name(config: Any) -> str:
    """The setting of a config that holds its feed-forward width. Raises ModelError."""
    return _first(config, FFN)[0]


def _named(config: Any, names: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The first entry of `names` that the config has; empty if none."""
    return next((each for each in names if all(hasattr(config, name) for name in each)), ())


def _first(config: Any, names: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The first entry of `names` that the config has. Raises ModelError."""
    if found := _named(config, names):
        return found
    raise ModelError(f"can't reshape a {config.model_type}: name a student model instead")


def copy_embeddings(source: PreTrainedModel, student: PreTrainedModel) -> None:
    """Copies the word embeddings of both sides and the output layer, where they are equally wide,
    and the output's bias."""
    for mine, theirs in zip(_words(student), _words(source), strict=True):
        if mine is not None and theirs is not None and mine.weight.shape == theirs.weight.shape:
            mine.load_state_dict(theirs.state_dict())
    bias: Any = getattr(source, "final_logits_bias", None)
    if isinstance(bias, Tensor):
        student.final_logits_bias.copy_(bias)  # pyright: ignore


def _words(model: Any) -> list[Any]:
    decoder = model.get_decoder() if encoder_decoder(model) else None
    inner = decoder.get_input_embeddings() if decoder is not None else None
    return [model.get_input_embeddings(), inner, model.get_output_embeddings()]
