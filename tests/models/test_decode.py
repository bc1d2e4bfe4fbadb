"""Decoding finds what transformers' `generate` finds, and what a search over all texts finds.

Axes: N texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from stillhouse.core.errors import DataError, ModelError, RunError, UsageError
from stillhouse.models import search as searches
from stillhouse.models.decode import decode, sequence_logp
from stillhouse.models.search import Decoding, Hypothesis

PAD, END, WORDS = 0, 1, 15
KINDS = ["marian", "bart", "t5", "gpt2", "llama"]


def _made(kind: str, words: int) -> PreTrainedModel:
    ids: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": END, "vocab_size": words}
    if kind in ("marian", "bart"):
        ids |= {"decoder_start_token_id": PAD if kind == "marian" else 2, "bos_token_id": 2}
        ids |= {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.3}
        ids |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 48}
        ids |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        if kind == "marian":
            return MarianMTModel(MarianConfig(**ids, scale_embedding=True))
        return BartForConditionalGeneration(BartConfig(**ids, forced_eos_token_id=None))
    if kind == "t5":
        ids |= {"decoder_start_token_id": PAD, "d_model": 16, "d_kv": 8, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(**ids, d_ff=24, num_layers=2))
    ids |= {"bos_token_id": 2}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**ids, n_embd=16, n_layer=2, n_head=2, n_positions=48))
    ids |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    ids |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48}
    return LlamaForCausalLM(LlamaConfig(**ids))


def generator(kind: str, *, words: int = WORDS, seed: int = 0) -> PreTrainedModel:
    """A tiny random model whose scores lie far apart, and which ends its texts now and then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(kind, words)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_positions" not in name:
                nn.init.normal_(parameter, std=0.5)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    if kind in ("marian", "bart"):
        model.final_logits_bias[0, END] = 5.0 if kind == "marian" else 9.0
    model.generation_config.forced_eos_token_id = None
    return model.double().eval()


def sources(count: int, *, seed: int = 0, longest: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, WORDS, rng.integers(1, longest + 1)) for _ in range(count)]


def generated(
    model: PreTrainedModel, source: np.ndarray, **settings: Any
) -> list[tuple[list[int], float]]:
    """What `generate` writes of one source, alone: ids without the end token, and scores."""
    ids = torch.from_numpy(source)[None]
    out: Any = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        bad_words_ids=[[PAD]],
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    skipped = 1 if model.config.is_encoder_decoder else len(source)
    scores = getattr(out, "sequences_scores", None)
    texts = []
    for row, text in enumerate(out.sequences[:, skipped:].tolist()):
        text = text[: text.index(END)] if END in text else text
        text = [token for token in text if token != PAD]  # padding after a cut-off text
        texts.append((text, np.nan if scores is None else float(scores[row])))
    return texts


def target(found: Hypothesis) -> np.ndarray:
    return np.array([*found.ids, *[END] * found.finished], np.int64)


def score(found: Hypothesis, penalty: float) -> float:
    return found.logp / (len(found.ids) + found.finished) ** penalty


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("early", "penalty", "best"),
    [("never", 1.0, 1), ("never", 0.0, 4), (False, 1.0, 4), (True, 0.6, 4), ("never", -0.5, 2)],
)
def test_beams_are_those_of_generate(kind: str, early: Any, penalty: float, best: int) -> None:
    model, given = generator(kind), sources(6)
    config = Decoding(
        beams=4, best=best, max_tokens=10, length_penalty=penalty, early_stopping=early
    )
    found = decode(model, given, config, pad_id=PAD)
    ended = 0
    for source, mine in zip(given, found, strict=True):
        settings = {"num_beams": 4, "num_return_sequences": best, "max_new_tokens": 10}
        theirs = generated(model, source, length_penalty=penalty, early_stopping=early, **settings)
        assert [each.ids.tolist() for each in mine] == [ids for ids, _ in theirs]
        assert [score(each, penalty) for each in mine] == pytest.approx(
            [each for _, each in theirs], rel=1e-5, abs=1e-5
        )
        ended += sum(each.finished for each in mine)
    assert ended > 0, "some end, or the rules for those that do are not tried"


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_that_of_generate(kind: str) -> None:
    model, given = generator(kind), sources(8, seed=1)
    found = decode(model, given, Decoding(beams=1, max_tokens=12), pad_id=PAD)
    for source, (mine,) in zip(given, found, strict=True):
        ((theirs, _),) = generated(model, source, num_beams=1, max_new_tokens=12)
        assert mine.ids.tolist() == theirs


def same(some: list[list[Hypothesis]], others: list[list[Hypothesis]]) -> None:
    for mine, theirs in zip(some, others, strict=True):
        assert [each.ids.tolist() for each in mine] == [each.ids.tolist() for each in theirs]
        assert [each.finished for each in mine] == [each.finished for each in theirs]
        assert [each.logp for each in mine] == pytest.approx([each.logp for each in theirs])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", [False, True])
def test_a_text_does_not_depend_on_its_batch(kind: str, sample: bool) -> None:
    model, given = generator(kind), sources(12, seed=2)
    found = []
    for tokens in (1, 150, 10_000):
        config = Decoding(
            beams=1 if sample else 3,
            best=1 if sample else 3,
            sample=sample,
            relative_max=(1.5, 2),
            max_batch_tokens=tokens,
        )
        rng = np.random.default_rng(3) if sample else None
        found.append(decode(model, given, config, pad_id=PAD, rng=rng))
    same(found[0], found[1])
    same(found[0], found[2])


@pytest.mark.parametrize("kind", ["marian", "llama"])
def test_done_texts_leave_their_batch_at_any_time(kind: str, monkeypatch: Any) -> None:
    model, given = generator(kind), sources(12, seed=4)
    config = Decoding(beams=3, best=2, relative_max=(1, 3))
    found = []
    for share in (1e-9, 1 / 3, 2.0):  # at once; now and then; never
        monkeypatch.setattr(searches, "CLOSED", share)
        found.append(decode(model, given, config, pad_id=PAD))
    same(found[0], found[2])
    same(found[1], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_beam_finds_the_best_of_all_texts(kind: str) -> None:
    """All texts of up to three tokens over three words, scored one by one by the model."""
    words, longest = 5, 3
    model, (source,) = generator(kind, words=words, seed=5), [np.array([3, 4, 2, 3])]
    config = Decoding(beams=80, best=80, max_tokens=longest, length_penalty=0.7)
    (found,) = decode(model, [source], config, pad_id=PAD)
    texts = [
        list(text)
        for length in range(longest + 1)
        for text in itertools.product([2, 3, 4], repeat=length)
    ]
    targets = [text if len(text) == longest else [*text, END] for text in texts]
    expected = []
    for text, wanted in zip(texts, targets, strict=True):
        with torch.no_grad():  # the slow way: a forward a text, no cache, no padding
            if model.config.is_encoder_decoder:
                before = [model.config.decoder_start_token_id, *wanted[:-1]]
                ids = torch.from_numpy(source)[None]
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([before])).logits[0]
            else:
                logits = model(torch.tensor([[*source, *wanted[:-1]]])).logits[0, len(source) - 1 :]
        logp = float(logits.log_softmax(-1)[range(len(wanted)), wanted].sum())
        expected.append((logp / len(wanted) ** 0.7, text, logp, wanted[-1] == END))
    expected.sort(key=lambda each: -each[0])
    assert [each.ids.tolist() for each in found] == [text for _, text, _, _ in expected]
    assert [each.finished for each in found] == [ended for _, _, _, ended in expected]
    assert [each.logp for each in found] == pytest.approx([logp for _, _, logp, _ in expected])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choices", [None, 9])
def test_a_texts_probability_is_what_the_search_says(kind: str, choices: int | None) -> None:
    model, given = generator(kind), [np.minimum(each, 8) for each in sources(7, seed=6)]
    config = Decoding(beams=4, best=4, max_tokens=9, length_penalty=0.5)
    found = decode(model, given, config, pad_id=PAD, choices=choices)
    rows = [row for row, texts in enumerate(found) for _ in texts]
    texts = list(itertools.chain.from_iterable(found))
    assert choices is None or max(max(each.ids, default=0) for each in texts) < choices
    logp_N = sequence_logp(
        model,
        [given[row] for row in rows],
        [target(each) for each in texts],
        pad_id=PAD,
        choices=choices,
        max_batch_tokens=40,
    )
    assert logp_N == pytest.approx([each.logp for each in texts], rel=1e-9)


def test_what_must_not_be_written_is_not() -> None:
    """The padding is the likeliest token by far, token 5 comes next."""
    model = generator("marian")
    model.final_logits_bias[0, PAD], model.final_logits_bias[0, 5] = 40.0, 20.0
    config = Decoding(beams=3, best=3, max_tokens=6)
    plain = decode(model, sources(4), config, pad_id=PAD)
    assert not any(PAD in each.ids for texts in plain for each in texts)
    assert all(5 in texts[0].ids for texts in plain)
    without = decode(model, sources(4), config, pad_id=PAD, suppressed=[5])
    assert not any(5 in each.ids for texts in without for each in texts)


def test_a_forced_first_token_comes_first_and_costs_nothing() -> None:
    model, given = generator("bart"), sources(3)
    config = Decoding(beams=3, max_tokens=8, length_penalty=0.0)
    found = decode(model, given, config, pad_id=PAD, forced_bos=7)
    for source, (mine,) in zip(given, found, strict=True):
        settings = {"num_beams": 3, "max_new_tokens": 8, "early_stopping": "never"}
        ((theirs, total),) = generated(
            model, source, forced_bos_token_id=7, length_penalty=0.0, **settings
        )
        assert mine.ids.tolist() == theirs
        assert mine.ids[0] == 7
        assert mine.logp == pytest.approx(total, rel=1e-5)


def test_a_models_own_first_token_is_kept_to() -> None:
    model, given = generator("bart"), sources(3)
    model.generation_config.forced_bos_token_id = 7
    found = decode(model, given, Decoding(beams=3, max_tokens=8), pad_id=PAD)
    assert all(mine.ids[0] == 7 for (mine,) in found)


def test_it_is_told_by_which_token_a_text_ended() -> None:
    model = generator("bart")
    model.generation_config.eos_token_id = [END, 5]
    config = Decoding(beams=4, best=4, max_tokens=12)
    found = [each for texts in decode(model, sources(8), config, pad_id=PAD) for each in texts]
    assert {each.end for each in found} >= {END, 5}
    assert all(len(each.ids) == 12 for each in found if not each.finished)


def test_padding_that_is_the_end_token_may_be_written() -> None:
    model = generator("gpt2")
    found = decode(model, sources(6), Decoding(beams=3, best=3, max_tokens=12), pad_id=END)
    assert any(each.finished for texts in found for each in texts)


def test_several_end_tokens() -> None:
    model, given = generator("llama"), sources(6)
    model.generation_config.eos_token_id = [END, 4, 9]
    found = decode(
        model, given, Decoding(beams=4, best=4, max_tokens=8, early_stopping=False), pad_id=PAD
    )
    for source, texts in zip(given, found, strict=True):
        out = model.generate(
            torch.from_numpy(source)[None],
            attention_mask=torch.ones(1, len(source), dtype=torch.long),
            bad_words_ids=[[PAD]],
            **{"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 8, "do_sample": False},
        )
        for mine, theirs in zip(texts, out[:, len(source) :].tolist(), strict=True):  # pyright: ignore
            assert mine.ids.tolist() == theirs[: len(mine.ids)]
            assert theirs[len(mine.ids)] in (END, 4, 9) if mine.finished else True
            assert not {END, 4, 9} & set(mine.ids.tolist())


def test_texts_keep_to_their_limit() -> None:
    model, given = generator("marian"), sources(10)
    model.final_logits_bias[0, END] = -50.0
    config = Decoding(beams=2, best=2, max_tokens=7, relative_max=(0.5, 2))
    for source, texts in zip(given, decode(model, given, config, pad_id=PAD), strict=True):
        for each in texts:
            assert len(each.ids) == min(7, len(source) // 2 + 2)
            assert not each.finished


def shares(model: PreTrainedModel, **settings: Any) -> np.ndarray:
    """How often each token comes first when drawn, V."""
    config = Decoding(beams=1, sample=True, max_tokens=1, **settings)
    given = [np.array([3, 4, 5])] * 4000
    found = decode(model, given, config, pad_id=PAD, rng=np.random.default_rng(0))
    drawn = [END if text.finished else int(text.ids[0]) for (text,) in found]
    return np.bincount(drawn, minlength=WORDS) / len(drawn)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 6, "top_p": 0.7}]
)
def test_tokens_are_drawn_as_often_as_they_are_likely(settings: dict[str, Any]) -> None:
    """Against transformers' own warpers."""
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    model = generator("gpt2", seed=2)
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4, 5]])).logits[:, -1].log_softmax(-1)
    logits[:, PAD] = -torch.inf
    warpers: list[Any] = [TemperatureLogitsWarper(settings.get("temperature", 1.0))]
    if "top_k" in settings:
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    ids: Any = torch.tensor([[3, 4, 5]])
    expected = LogitsProcessorList(warpers)(ids, logits).softmax(-1)[0].numpy()
    found = shares(model, **settings)
    assert found == pytest.approx(expected, abs=0.03)  # 4 standard deviations at worst
    assert not found[expected == 0].any()


def test_drawn_texts_have_the_models_probability() -> None:
    model, given = generator("t5"), sources(5)
    config = Decoding(beams=1, sample=True, temperature=1.7, top_k=5, max_tokens=6)
    found = decode(model, given, config, pad_id=PAD, rng=np.random.default_rng(0))
    targets = [target(text) for (text,) in found]
    logp_N = sequence_logp(model, given, targets, pad_id=PAD)
    assert logp_N == pytest.approx([text.logp for (text,) in found])


def test_a_model_in_training_decodes_without_dropout_and_goes_on_training() -> None:
    model, given = generator("marian"), sources(4)
    expected = decode(model, given, Decoding(max_tokens=6), pad_id=PAD)
    model.train()
    model.model.encoder.eval()
    same(decode(model, given, Decoding(max_tokens=6), pad_id=PAD), expected)
    assert model.training
    assert model.model.decoder.layers[0].training
    assert not model.model.encoder.layers[0].training


def test_bf16_finds_nearly_as_likely_texts() -> None:
    model, given = generator("marian").float(), sources(6)
    for precision in ("float32", "bf16"):
        config = Decoding(max_tokens=8, precision=precision)
        found = decode(model, given, config, pad_id=PAD)
        logp = [text.logp for (text,) in found]
        if precision == "float32":
            expected = logp
    assert logp != expected
    assert logp == pytest.approx(expected, rel=0.1)


def test_progress_counts_texts() -> None:
    seen: list[int] = []
    decode(
        generator("marian"),
        sources(7),
        Decoding(max_tokens=3, max_batch_tokens=160),
        pad_id=PAD,
        progress=seen.append,
    )
    assert sum(seen) == 7
    assert len(seen) > 1
    assert decode(generator("marian"), [], Decoding(), pad_id=PAD) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best": 6}, "best is at most beams"),
        ({"sample": True}, "sample needs beams 1"),
        ({"top_p": 0}, "greater than 0"),
        ({"beam": 3}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def test_what_cannot_be_decoded_is_refused() -> None:
    model = generator("gpt2")
    with pytest.raises(DataError, match="a source is empty"):
        decode(model, [np.array([], np.int64)], Decoding(), pad_id=PAD)
    with pytest.raises(DataError, match="has 48 tokens, the model 48 positions"):
        decode(model, [np.full(48, 3)], Decoding(), pad_id=PAD)
    with pytest.raises(UsageError, match="needs a generator"):
        decode(model, sources(2), Decoding(beams=1, sample=True), pad_id=PAD)
    with pytest.raises(UsageError, match="nothing limits"):
        decode(generator("t5"), sources(1), Decoding(max_tokens=None), pad_id=PAD)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    for sample in (False, True):
        config = Decoding(beams=1, sample=sample)
        with pytest.raises(RunError, match="scores are not finite"):
            decode(model, sources(2), config, pad_id=PAD, rng=np.random.default_rng(0))
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="no end token"):
        decode(model, sources(2), Decoding(), pad_id=PAD)


def test_texts_go_to_the_models_last_position() -> None:
    model = generator("gpt2")
    with torch.no_grad():
        model.lm_head.weight[END] = -10 * model.lm_head.weight[3:].mean(0)
    ((text,),) = decode(model, [np.full(40, 3)], Decoding(beams=1, max_tokens=None), pad_id=PAD)
    assert text.finished or len(text.ids) == 8
