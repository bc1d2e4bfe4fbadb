"""Generators: what is loaded, what is refused, and scores of chosen places only.

Axes: B examples, T tokens, N scored places, K choices, V vocabulary, H hidden.
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
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GPT2Model,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MarianConfig,
    MBartConfig,
    PegasusConfig,
    PhiConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
    T5Config,
)

import tiny
from stillhouse.core.errors import ModelError
from stillhouse.models.generator import (
    head_of,
    load_generator,
    own_rows,
    states_of_rows,
    used_choices,
    writes,
)

V, H = 40, 16
SIDES = {
    "vocab_size": V,
    "d_model": H,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 0,
    "max_position_embeddings": 32,
}
T5 = {"vocab_size": V, "d_model": H, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2,
      "decoder_start_token_id": 0}  # fmt: skip
ONE = {"vocab_size": V, "hidden_size": H, "intermediate_size": 32, "num_hidden_layers": 2,
       "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
       "eos_token_id": 1}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "marian": lambda: MarianConfig(**SIDES),
    "bart": lambda: BartConfig(**SIDES),
    "mbart": lambda: MBartConfig(**SIDES),
    "pegasus": lambda: PegasusConfig(**SIDES),
    "t5": lambda: T5Config(**T5),
    "t5 untied": lambda: T5Config(**T5, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(
        vocab_size=V, n_embd=H, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    ),
    "llama": lambda: LlamaConfig(**ONE),
    "gemma2": lambda: Gemma2Config(
        **ONE, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8
    ),
    "cohere": lambda: CohereConfig(**ONE),
    "granite": lambda: GraniteConfig(**ONE, logits_scaling=4.0),
}
# Further transforms: another name of the soft cap, a factor that multiplies where Granite's of the
# same name divides, another name of a factor, a bias in the layer.
MORE: dict[str, Any] = {
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        **ONE, lru_width=H, block_types=["attention", "recurrent"]
    ),
    "hyperclovax": lambda: HyperCLOVAXConfig(**ONE, logits_scaling=0.25),
    "falcon_h1": lambda: FalconH1Config(
        **ONE, num_key_value_heads=2, lm_head_multiplier=0.3,
        mamba_d_ssm=H, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=8,
    ),
    "phi": lambda: PhiConfig(**ONE),
}  # fmt: skip
ALL = CONFIGS | MORE
every = pytest.mark.parametrize("family", CONFIGS)
TRANSFORMS = {
    "gemma2": (1.0, 30.0),
    "recurrent_gemma": (1.0, 30.0),
    "cohere": (0.0625, None),
    "granite": (0.25, None),
    "hyperclovax": (0.25, None),
    "falcon_h1": (0.3, None),
}


def model(family: str, seed: int = 0) -> PreTrainedModel:
    config = ALL[family]()
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = auto.from_config(config)
        for name, tensor in (*found.named_parameters(), *found.named_buffers()):
            if "bias" in name and tensor.is_floating_point():
                nn.init.normal_(tensor)
        if family == "t5 untied":
            layer = found.get_output_embeddings()
            layer.weight = nn.Parameter(torch.randn(V, H))
    return found.eval()


def batch(found: PreTrainedModel) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(2, V, (3, 5), generator=draw)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, 3:] = 0
    if found.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(2, V, (3, 4), generator=draw)
    return inputs


SCORED_N = torch.tensor([11, 0, 3, 7])  # not in order


def whole(found: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """The slow reference: all scores, then the scored places."""
    return found(**inputs).logits.flatten(0, 1)[SCORED_N]


@pytest.mark.parametrize("family", ALL)
def test_scores_of_chosen_places_are_the_whole_forwards(family: str) -> None:
    found = model(family)
    inputs = batch(found)
    with torch.no_grad():
        expected_NV = whole(found, inputs)
        head = head_of(found, V - 3)
        assert head is not None
        assert (head.scale, head.softcap) == TRANSFORMS.get(family, (1.0, None))
        hidden_NH = states_of_rows(found, inputs, SCORED_N)
        assert hidden_NH.shape == (4, H)
        torch.testing.assert_close(own_rows(found, inputs, SCORED_N), expected_NV)
        torch.testing.assert_close(head(hidden_NH), expected_NV[:, : V - 3])


@every
@pytest.mark.parametrize("by_head", [False, True], ids=["own", "head"])
def test_gradients_are_the_whole_forwards(family: str, by_head: bool) -> None:
    found = model(family)
    inputs, gradients = batch(found), []
    for chosen in (False, True):
        if not chosen:
            scores_NV = whole(found, inputs)
        elif by_head:
            scores_NV = head_of(found)(states_of_rows(found, inputs, SCORED_N))
        else:
            scores_NV = own_rows(found, inputs, SCORED_N)
        found.zero_grad()
        scores_NV.log_softmax(-1)[:, 5].sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in found.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 5
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-4, msg=name)


@every
def test_nothing_as_wide_as_the_vocabulary_is_made_of_what_is_not_scored(family: str) -> None:
    found = model(family)
    inputs = batch(found)
    sizes: list[tuple[int, ...]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            wide = isinstance(made, Tensor) and made.shape[-1:] == (V,) and made.ndim > 1
            if wide and made.shape != (H, V):  # the weight, turned
                sizes.append(tuple(made.shape))
            return made

    with torch.no_grad():
        with Watch():
            whole(found, inputs)
        wide = max(torch.Size(size).numel() for size in sizes)
        assert wide == inputs.get("decoder_input_ids", inputs["input_ids"]).numel() * V
        sizes.clear()
        with Watch():
            own_rows(found, inputs, SCORED_N)
        assert max(torch.Size(size).numel() for size in sizes) == len(SCORED_N) * V
        sizes.clear()
        with Watch():
            states_of_rows(found, inputs, SCORED_N)
        assert max((torch.Size(size).numel() for size in sizes), default=0) <= V  # a bias


def test_the_models_own_forward_is_back_afterwards() -> None:
    found = model("bart")
    inputs, layer = batch(found), found.get_output_embeddings()
    states_of_rows(found, inputs, SCORED_N)
    with pytest.raises(IndexError):
        own_rows(found, inputs, torch.tensor([99]))
    assert "forward" not in vars(layer)
    assert found(**inputs).logits.shape == (3, 4, V)


def test_a_heads_weights_are_the_models_and_follow_them() -> None:
    found = model("gpt2").train()
    head = head_of(found)
    assert found.training
    assert head.weight_VH is found.get_output_embeddings().weight
    with torch.no_grad():
        found.get_input_embeddings().weight.mul_(2.0)
    again = head_of(found)
    hidden_NH = torch.randn(2, H)
    assert torch.equal(head(hidden_NH), again(hidden_NH))


def test_a_head_that_is_no_plain_product_is_left_to_the_model() -> None:
    """A low-rank update, as adapters add one, and a layer that takes its place later."""
    found = model("llama")
    assert head_of(found) is not None

    class Adapted(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden) + 0.1 * hidden.sum(-1, keepdim=True)

    layer = Adapted(H, V, bias=False)
    found.set_output_embeddings(layer)
    assert head_of(found) is None
    inputs = batch(found)
    torch.testing.assert_close(own_rows(found, inputs, SCORED_N), whole(found, inputs))


def test_a_soft_cap_is_found_where_the_models_own_scores_are_too_small_to_show_it() -> None:
    found = model("gemma2")
    with torch.no_grad():
        found.get_output_embeddings().weight.mul_(1e-3)
    assert head_of(found).softcap == 30.0


def test_more_choices_than_a_vocabulary_has_are_refused() -> None:
    with pytest.raises(ModelError, match=r"ids up to 40, the model's vocabulary ends at 39"):
        head_of(model("gpt2"), V + 1)


def test_used_choices_count_added_tokens_too() -> None:
    mine = tiny.tokenizer()
    before = used_choices(mine)
    assert before == len(tiny.WORDS) + 5
    mine.add_tokens(["<extra>"])
    assert used_choices(mine) == before + 1


def test_only_generators_write() -> None:
    assert all(writes(model(family)) for family in ("marian", "t5", "gpt2"))
    assert not any(writes(tiny.model(masked=masked)) for masked in (False, True))
    assert not writes(nn.Linear(2, 2))


# Loading.


@every
def test_a_saved_model_is_loaded_with_all_its_weights(family: str, tmp_path: Path) -> None:
    saved = model(family)
    saved.save_pretrained(tmp_path)
    kind = "seq2seq" if saved.config.is_encoder_decoder else "causal_lm"
    found = load_generator(str(tmp_path), kind)
    assert not found.training
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    inputs = batch(saved)
    with torch.no_grad():
        torch.testing.assert_close(whole(found, inputs), whole(saved, inputs))


def test_half_precision_weights_are_loaded_in_float32(tmp_path: Path) -> None:
    model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    found = load_generator(str(tmp_path), "causal_lm")
    assert {p.dtype for p in found.parameters()} == {torch.float32}


def save_bert(folder: Path, *, decoder: bool) -> None:
    settings = {**ONE, "is_decoder": decoder}
    (BertLMHeadModel if decoder else BertForMaskedLM)(BertConfig(**settings)).save_pretrained(
        folder
    )


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    model("marian").save_pretrained(tmp_path / "marian")
    model("gpt2").save_pretrained(tmp_path / "gpt2")
    save_bert(tmp_path / "bert", decoder=False)
    save_bert(tmp_path / "decoder", decoder=True)
    for name, kind, says in (
        ("marian", "causal_lm", "marian, an encoder-decoder: take --task seq2seq"),
        ("gpt2", "seq2seq", "gpt2, a language model without an encoder: take --task causal_lm"),
        ("bert", "causal_lm", "bert, which writes no text"),
        ("bert", "seq2seq", "bert, which writes no text"),
    ):
        with pytest.raises(ModelError, match=says) as caught:
            load_generator(str(tmp_path / name), kind)
        assert "\n" not in str(caught.value)
    assert load_generator(str(tmp_path / "decoder"), "causal_lm").config.is_decoder


def save_without(found: PreTrainedModel, folder: Path, *names: str) -> None:
    kept = {k: t for k, t in found.state_dict().items() if not k.startswith(names)}
    found.save_pretrained(folder, state_dict=kept)


def test_missing_weights_are_refused_and_tied_ones_are_not_missing(tmp_path: Path) -> None:
    GPT2Model(CONFIGS["gpt2"]()).save_pretrained(tmp_path / "tied")
    assert load_generator(str(tmp_path / "tied"), "causal_lm") is not None
    save_without(model("llama"), tmp_path / "headless", "lm_head")
    with pytest.raises(ModelError, match=r"no vocabulary head \(its weights lack lm_head.weight\)"):
        load_generator(str(tmp_path / "headless"), "causal_lm")
    save_without(model("t5"), tmp_path / "part", "encoder.block.1")
    with pytest.raises(ModelError, match=r"not those its config.json describes.*encoder.block.1"):
        load_generator(str(tmp_path / "part"), "seq2seq")
