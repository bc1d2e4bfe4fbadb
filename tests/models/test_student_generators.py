"""Students of models that write: which layers of which side stay, what fresh shapes get.

Axes: B examples, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    PreTrainedModel,
    T5Config,
)

import tiny
from stillhouse.core.config import StudentConfig
from stillhouse.core.errors import ModelError, UsageError
from stillhouse.core.settings import parse
from stillhouse.models.generator import load_generator
from stillhouse.models.student import build, take_layers

V = 40
SIDES = {"vocab_size": V, "d_model": 16, "encoder_layers": 4, "decoder_layers": 4,
         "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "pad_token_id": 0, "bos_token_id": None,
         "eos_token_id": 1, "forced_eos_token_id": None, "decoder_start_token_id": 0,
         "max_position_embeddings": 32}  # fmt: skip
T5 = {"vocab_size": V, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 4, "num_heads": 2,
      "decoder_start_token_id": 0}  # fmt: skip
ONE = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
       "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
       "eos_token_id": 1}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "marian": lambda: MarianConfig(**SIDES),
    "bart": lambda: BartConfig(**SIDES),
    "t5": lambda: T5Config(**T5),
    "t5 untied": lambda: T5Config(**T5, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(
        vocab_size=V, n_embd=16, n_layer=4, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    ),
    "llama": lambda: LlamaConfig(**ONE),
    "gemma2": lambda: Gemma2Config(**ONE, head_dim=6, query_pre_attn_scalar=8, sliding_window=2),
}
SEQ2SEQ = ["marian", "bart", "t5", "t5 untied"]
BLOCKS = {
    "marian": ("model.encoder.layers", "model.decoder.layers"),
    "bart": ("model.encoder.layers", "model.decoder.layers"),
    "t5": ("encoder.block", "decoder.block"),
    "t5 untied": ("encoder.block", "decoder.block"),
    "gpt2": ("transformer.h",),
    "llama": ("model.layers",),
    "gemma2": ("model.layers",),
}
every = pytest.mark.parametrize("family", CONFIGS)
sided = pytest.mark.parametrize("family", SEQ2SEQ)


def model(family: str) -> PreTrainedModel:
    config = CONFIGS[family]()
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = auto.from_config(config)
        for name, tensor in (*found.named_parameters(), *found.named_buffers()):
            if "embed_positions" not in name and "inv_freq" not in name and "scale" not in name:
                nn.init.normal_(tensor, std=0.3)
        if family == "t5 untied":
            found.get_output_embeddings().weight = nn.Parameter(torch.randn(V, 16))
    found.generation_config.max_length = 17
    return found.eval()


def batch(found: PreTrainedModel) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(2, V, (3, 6), generator=draw)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if found.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(2, V, (3, 5), generator=draw)
    return inputs


@torch.no_grad()
def scores(found: PreTrainedModel) -> Tensor:
    return found(**batch(found), use_cache=False).logits


class Skipped(nn.Module):
    """A block that gives what it got, but a T5's relative positions, which others use."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        made = self.block(hidden, *args, **kwargs)
        return (hidden, *made[1:]) if isinstance(made, tuple) else hidden


def only(found: PreTrainedModel, family: str, kept: list[list[int]]) -> PreTrainedModel:
    """The reference: the whole model with all other blocks skipped."""
    for name, layers in zip(BLOCKS[family], kept, strict=True):
        blocks = found.get_submodule(name)
        for i in range(len(blocks)):
            if i + 1 not in layers:
                blocks[i] = Skipped(blocks[i])
    return found


@every
def test_a_student_of_all_layers_is_its_teacher(family: str) -> None:
    source = model(family)
    student = build(source, StudentConfig(layers=4))
    assert type(student) is type(source)
    assert torch.equal(scores(student), scores(source))
    assert not student.training


@every
@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ({}, [2, 4]),
        ({"layers": 1}, [4]),
        ({"layers": 3, "keep": "first"}, [1, 2, 3]),
        ({"layers": [2, 3]}, [2, 3]),
    ],
    ids=str,
)
def test_a_student_is_its_teacher_with_the_other_blocks_skipped(
    family: str, shape: dict[str, Any], kept: list[int]
) -> None:
    """Both sides alike. A T5 that lost its first block keeps that one's relative positions."""
    source = model(family)
    student = build(source, StudentConfig(**shape))
    for name in BLOCKS[family]:
        assert len(student.get_submodule(name)) == len(kept)
    if family == "gemma2":  # whose kinds of attention come along
        kinds = source.config.layer_types
        assert student.config.layer_types == [kinds[k - 1] for k in kept]
    expected = scores(only(source, family, [kept] * len(BLOCKS[family])))
    torch.testing.assert_close(scores(student), expected)


@sided
@pytest.mark.parametrize(
    ("shape", "encoder", "decoder"),
    [
        ({"decoder_layers": 1}, [1, 2, 3, 4], [4]),
        ({"layers": 3, "keep": "last", "decoder_layers": 2}, [2, 3, 4], [3, 4]),
        ({"layers": [1, 4], "decoder_layers": [3]}, [1, 4], [3]),
    ],
    ids=str,
)
def test_encoder_and_decoder_can_be_cut_apart(
    family: str, shape: dict[str, Any], encoder: list[int], decoder: list[int]
) -> None:
    source = model(family)
    student = build(source, StudentConfig(**shape))
    expected = scores(only(source, family, [encoder, decoder]))
    torch.testing.assert_close(scores(student), expected)


@every
def test_a_saved_student_is_loaded_again_and_generates_as_its_teacher_is_set(
    family: str, tmp_path: Path
) -> None:
    source = model(family)
    for shape in (StudentConfig(layers=2), StudentConfig(layers=2, width=32)):
        student = build(source, shape)
        assert student.generation_config.max_length == 17
        assert student.generation_config is not source.generation_config
        student.save_pretrained(tmp_path)
        kind = "seq2seq" if family in SEQ2SEQ else "causal_lm"
        again = load_generator(str(tmp_path), kind)
        assert torch.equal(scores(again), scores(student))
        ids_BT = again.generate(torch.tensor([[5, 6, 7]]))
        assert ids_BT.shape[1] <= 17


@every
def test_taken_weights_are_copies_and_ties_stay(family: str) -> None:
    source = model(family)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    student = take_layers(source, [1, 3])
    tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight
            for m in (student, source)]  # fmt: skip
    assert tied[0] == tied[1] == (family not in ("t5 untied", "llama"))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


@every
def test_a_fresh_shape_is_as_asked_and_follows_its_seed(family: str) -> None:
    source = model(family)
    shape = StudentConfig(layers=2, width=32, ffn=48, heads=4)
    student, same, other = (build(source, shape, seed=seed) for seed in (1, 1, 2))
    assert student.get_input_embeddings().weight.shape == (V, 32)
    for name in BLOCKS[family]:
        assert len(student.get_submodule(name)) == 2
    shapes = {tuple(p.shape) for n, p in student.named_parameters() if BLOCKS[family][0] in n}
    assert (48, 32) in shapes or (32, 48) in shapes
    assert student.config.num_attention_heads == 4
    assert torch.isfinite(scores(student)).all()
    states = [m.state_dict() for m in (student, same, other)]
    drawn = [n for n, p in student.named_parameters() if p.ndim == 2 and "embed_pos" not in n]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in drawn)
    held = {id(p) for p in source.parameters()}
    assert not any(id(p) in held for p in student.parameters())


@every
def test_what_is_not_asked_follows_the_width(family: str) -> None:
    student = build(model(family), StudentConfig(width=8, layers=1))
    config = student.config
    heads = {"llama": 2, "gemma2": 2}.get(family, 1)  # half as many
    assert config.num_attention_heads == heads
    shapes = {tuple(p.shape) for p in student.parameters() if p.ndim == 2}
    inner = 4 * 8 if family == "gpt2" else 16
    assert (inner, 8) in shapes or (8, inner) in shapes
    if family in ("llama", "gemma2"):
        assert config.num_key_value_heads == 1
    assert torch.isfinite(scores(student)).all()


@every
def test_embeddings_of_equal_width_are_copied_unless_fresh(family: str) -> None:
    source = model(family)
    student = build(source, StudentConfig(layers=2, ffn=24), seed=1)
    for mine, theirs in (
        (student.get_input_embeddings(), source.get_input_embeddings()),
        (student.get_output_embeddings(), source.get_output_embeddings()),
    ):
        assert torch.equal(mine.weight, theirs.weight)
        assert mine.weight.data_ptr() != theirs.weight.data_ptr()
    for shape in (StudentConfig(layers=2, fresh=True), StudentConfig(ffn=24, fresh=True)):
        student = build(source, shape, seed=1)
        held = list(source.parameters())
        for name, parameter in student.named_parameters():
            if "embed_positions" in name:  # sinusoids
                continue
            if parameter.ndim == 2:
                assert not any(
                    p.shape == parameter.shape and torch.equal(p, parameter) for p in held
                ), name


@sided
def test_fresh_sides_may_differ(family: str) -> None:
    student = build(model(family), StudentConfig(width=8, layers=3, decoder_layers=1))
    lengths = [len(student.get_submodule(name)) for name in BLOCKS[family]]
    assert lengths == [3, 1]
    whole = build(model(family), StudentConfig(width=8, decoder_layers=1))
    assert [len(whole.get_submodule(name)) for name in BLOCKS[family]] == [4, 1]


@pytest.mark.parametrize(
    ("family", "shape", "says"),
    [
        ("marian", {"layers": 5}, "5 layers is larger than its source's 4"),
        ("marian", {"decoder_layers": 5}, "5 layers is larger than its source's 4"),
        ("t5", {"decoder_layers": [2, 5]}, r"layers \[2, 5\] are not all among"),
        ("gpt2", {"decoder_layers": 1}, "a gpt2 has no decoder beside its encoder"),
        ("gpt2", {"width": 18, "heads": 4}, "18 is not a multiple of 4 heads"),
        ("llama", {"width": 12, "heads": 4}, "4 heads of 3 can't be turned"),
        ("gpt2", {"family": "distilbert"}, "made of a BERT, not of a gpt2"),
        ("marian", {"family": "distilbert"}, "made of a BERT, not of a marian"),
    ],
)
def test_impossible_shapes_are_refused(family: str, shape: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        build(model(family), StudentConfig(**shape))
    assert "\n" not in str(caught.value)


def test_an_encoder_has_no_decoder_to_cut() -> None:
    with pytest.raises(ModelError, match="a bert has no decoder beside its encoder"):
        build(tiny.model(), StudentConfig(decoder_layers=1))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"decoder_layers": [2, 1]}, "must rise, got"),
        ({"decoder_layers": []}, "must rise, got"),
        ({"decoder_layers": 0}, "greater than"),
        ({"decoder_layers": 1, "model": "m"}, "either 'model' or a shape"),
        ({"decoder_layers": [1], "width": 8}, "takes a count of layers, no list"),
    ],
)
def test_decoder_layers_are_checked_as_layers_are(shape: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(StudentConfig, shape)
