"""What families of generators call the parts of their shape, and where their blocks are."""

from __future__ import annotations

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
    ("ffn_dim",),
)
HEADS = (
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("num_heads",),
    ("num_attention_heads",),
)
HEAD_WIDTH = ("d_kv", "head_dim")
SHARED = "relative_attention_bias"  # of T5's first block, which all of its blocks add


@dataclass(frozen=True)
class Stack:
    """Blocks of one side of a model: their list's dotted name, and its count's in the config."""

    name: str
    setting: str
    blocks: nn.ModuleList

    def __len__(self) -> int:
        return len(self.blocks)


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
    """Gives a generator's config another width, feed-forward width and count of heads; what is not
    given follows the width. Raises ModelError where they don't go together."""
    ffn_names, head_names = _first(config, FFN), _first(config, HEADS)
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
    for name in ffn_names:
        held = getattr(config, name)
        if ffn or held is not None:  # GPT-2's: four times the width unless it is set
            setattr(config, name, ffn or held * new // old)
    if getattr(config, "word_embed_proj_dim", None) == old:
        config.word_embed_proj_dim = new
    config.hidden_size = new
    for name in head_names:
        setattr(config, name, count)
    for name in HEAD_WIDTH:
        if getattr(config, name, None):
            setattr(config, name, size)
    if groups := getattr(config, "num_key_value_heads", None):
        fit = max(1, count * groups // old_heads)
        config.num_key_value_heads = next(g for g in range(fit, 0, -1) if count % g == 0)


def _first(config: Any, names: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The first entry of `names` that the config has. Raises ModelError."""
    for each in names:
        if all(hasattr(config, name) for name in each):
            return each
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
