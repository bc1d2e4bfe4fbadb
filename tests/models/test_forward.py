"""The fast path computes what the model's own forward computes: values, gradients, dropout, and
what is read inside.

Axes: B examples, K choices, T tokens, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny
from stillhouse.core.types import Batch, StudentOutput, Tap, What
from stillhouse.models import encoder
from stillhouse.models.forward import (
    fast_layers,
    fast_weights,
    has_fast_path,
    needed,
    run,
    scores,
    training_mode,
)
from stillhouse.models.student import blocks
from stillhouse.models.taps import reading
from stillhouse.models.weights import Pair, linear

FAST = ["bert", "roberta", "xlm-roberta", "distilbert"]
TEXTS = [text for text, _ in tiny.sentences(12)]


def inputs(kind: str, *, pairs: bool = False, padded: bool = True) -> Mapping[str, Tensor]:
    texts = TEXTS if padded else ["the film was good", "the room was cold"]
    others = texts[::-1] if pairs else None
    return dict(tiny.tokenizer(kind)(texts, others, padding=True, return_tensors="pt"))


def own(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).logits


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_fast_scores_equal_the_models_own(kind: str, pairs: bool, padded: bool) -> None:
    model, batch = tiny.model(kind, layers=3), inputs(kind, pairs=pairs, padded=padded)
    assert has_fast_path(model)
    expected_BK = own(model, batch)
    assert expected_BK.std(0).max() > 0.01, "rows that all score alike would hide a mistake"
    found_BK = scores(model, batch, precision="float32")
    assert found_BK.dtype == torch.float32
    torch.testing.assert_close(found_BK, expected_BK, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAST)
def test_fast_gradients_equal_the_models_own(kind: str) -> None:
    model, batch = tiny.model(kind, layers=3, dropout=0.0), inputs(kind, pairs=True)
    weights_BK = torch.randn(len(TEXTS), 2, generator=torch.Generator().manual_seed(0))
    with training_mode(model, on=True):
        (own(model, batch) * weights_BK).sum().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        found_BK = scores(model, batch, precision="float32", rng=np.random.default_rng(0))
        (found_BK * weights_BK).sum().backward()
    assert len(expected) >= 38 + 16
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", FAST)
def test_bf16_is_close(kind: str) -> None:
    model, batch = tiny.model(kind), inputs(kind)
    found_BK = scores(model, batch, precision="bf16")
    assert found_BK.dtype == torch.float32
    difference = (found_BK.softmax(-1) - own(model, batch).softmax(-1)).abs().max()
    assert 0 < difference < 0.05


def multiplied(
    monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, precision: str
) -> tuple[list[int], Mapping[str, Tensor]]:
    """How many rows each linear layer of a forward's blocks took, and its inputs."""
    batch, counts = inputs("bert"), list[int]()

    def counted(x: Tensor, pair: Pair) -> Tensor:
        counts.append(len(x))
        return linear(x, pair)

    monkeypatch.setattr(encoder, "linear", counted)
    scores(model, batch, precision=precision)
    return counts, batch


@pytest.mark.parametrize("kind", [*FAST, "electra", "deberta-v2"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("trains", [True, False])
def test_values_far_from_0_keep_their_differences_in_bf16(
    kind: str, fast: bool, trains: bool
) -> None:
    """Between 2 and 4, bf16 has steps of 0.016: ratings would come out as one."""
    model, batch = tiny.model(kind, labels=["value"]), inputs(kind)
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1]
    with torch.no_grad():
        head[-1].weight *= 0.02
        head[-1].bias.fill_(3.0)
    with torch.set_grad_enabled(trains):
        exact_B = scores(model, batch, precision="float32", fast=fast)[:, 0]
        found_B = scores(model, batch, precision="bf16", fast=fast)[:, 0]
    assert exact_B.std() < 0.01
    assert len(found_B.unique()) == len(exact_B.unique())
    assert torch.corrcoef(torch.stack([exact_B, found_B]).detach())[0, 1] > 0.9
    if trains:
        found_B.sum().backward()
        assert head[-1].bias.grad == pytest.approx(len(found_B))


def test_a_classifier_computes_no_padding_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, batch = multiplied(monkeypatch, tiny.model(layers=2), "float32")
    mask_BT = batch["attention_mask"]
    real, texts = int(mask_BT.sum()), len(mask_BT)
    assert real < mask_BT.numel()
    assert counts == [real] * 4 + [texts] * 4, "the last block has nothing of other tokens"


def test_bf16_computes_what_the_models_own_forward_does(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, batch = multiplied(monkeypatch, tiny.model(layers=2), "bf16")
    every, texts = batch["attention_mask"].numel(), len(batch["attention_mask"])
    assert counts == [every] * 4 + [texts, every] + [texts] * 3


@torch.no_grad()
def test_the_first_tokens_attention_has_the_spread_of_the_models_own() -> None:
    """Its dropout alone, where values are far from 0: shares that don't add up to 1 count."""
    model = tiny.model(layers=1, dropout=0.0, attention_probs_dropout_prob=0.4)
    model.bert.encoder.layer[0].attention.self.value.bias.fill_(2.0)
    one = tiny.tokenizer("bert")(["the film was good but slow", "cold"], padding=True)
    batch = {n: torch.tensor(t).repeat(3000, 1) for n, t in one.items()}
    torch.manual_seed(0)
    with training_mode(model, on=True):
        found_BK = scores(model, batch, precision="float32", rng=np.random.default_rng(0))
        own_BK = own(model, batch)
    for text in (slice(0, None, 2), slice(1, None, 2)):
        torch.testing.assert_close(found_BK[text].mean(0), own_BK[text].mean(0), atol=0.02, rtol=0)
        torch.testing.assert_close(found_BK[text].std(0), own_BK[text].std(0), atol=0, rtol=0.07)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_dropout_is_on_with_a_generator_and_follows_it(kind: str) -> None:
    model, batch = tiny.model(kind, dropout=0.3), inputs(kind)
    once, again, other = (
        scores(model, batch, precision="float32", rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.allclose(once, other)
    plain = scores(model, batch, precision="float32")
    assert torch.equal(plain, scores(model, batch, precision="float32"))
    assert not torch.allclose(once, plain)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_fast_dropout_has_the_moments_of_the_models_own(kind: str) -> None:
    """Every dropout is there: the scores' spread over many draws is that of torch's dropout."""
    model = tiny.model(kind, dropout=0.2, layers=2)
    text = "the film was good but the ending slow"
    one = dict(tiny.tokenizer(kind)(text, return_tensors="pt"))
    batch = {name: tensor.expand(4000, -1) for name, tensor in one.items()}
    with torch.no_grad(), training_mode(model, on=True):
        fast_BK = scores(model, batch, precision="float32", rng=np.random.default_rng(0))
        torch.manual_seed(0)
        own_BK = own(model, batch)
    torch.testing.assert_close(fast_BK.mean(0), own_BK.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(fast_BK.std(0), own_BK.std(0), atol=0, rtol=0.07)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "hidden_dropout_prob"),
        ("bert", "attention_probs_dropout_prob"),
        ("bert", "classifier_dropout"),
        ("roberta", "classifier_dropout"),
        ("distilbert", "dropout"),
        ("distilbert", "attention_dropout"),
        ("distilbert", "seq_classif_dropout"),
    ],
)
@torch.no_grad()
def test_each_dropout_has_the_spread_of_the_models_own(kind: str, name: str) -> None:
    """Each alone, in the last state and in the scores: none is left out, none is in two places."""
    of_distilbert = ("dropout", "attention_dropout", "seq_classif_dropout")
    names = of_distilbert if kind == "distilbert" else ("dropout", "classifier_dropout")
    model = tiny.model(kind, **{**dict.fromkeys(names, 0.0), name: 0.3})
    one = tiny.tokenizer(kind)("the film was good but the ending slow", return_tensors="pt")
    batch = Batch({n: t.expand(3000, -1) for n, t in one.items()}, np.arange(3000))
    tap = Tap("hidden", 2)
    torch.manual_seed(0)
    found: list[tuple[Tensor, Tensor]] = []
    with training_mode(model, on=True):
        for fast in (True, False):
            output = answer(model, batch, fast=fast, reads={tap}, rng=np.random.default_rng(0))
            assert output.states is not None
            found.append((output.scores_NK, output.states[tap][:, 0]))
    for mine, own_ in zip(*found, strict=True):
        spread, expected = mine.var(0).sum().sqrt(), own_.var(0).sum().sqrt()
        torch.testing.assert_close(spread, expected, atol=1e-5, rtol=0.05)
        torch.testing.assert_close(
            mine.mean(0), own_.mean(0), atol=0.1 * float(expected) + 1e-5, rtol=0
        )
    assert found[1][0].std(0).max() > 0.01


@pytest.mark.parametrize("kind", FAST)
def test_longer_padding_changes_nothing(kind: str) -> None:
    model, batch = tiny.model(kind), inputs(kind)
    pad = {"input_ids": model.config.pad_token_id}
    longer = {
        name: torch.nn.functional.pad(tensor, (0, 9), value=pad.get(name, 0))
        for name, tensor in batch.items()
    }
    for fast in (True, False):
        torch.testing.assert_close(
            scores(model, longer, precision="float32", fast=fast),
            scores(model, batch, precision="float32", fast=fast),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("electra", {}),
        ("modernbert", {}),
        ("bert", {"hidden_act": "relu"}),
        ("distilbert", {"activation": "relu"}),
        ("bert", {"is_decoder": True}),
    ],
)
def test_other_models_answer_with_their_own_forward(kind: str, settings: dict[str, object]) -> None:
    model, batch = tiny.model(kind, **settings), inputs(kind)
    assert not has_fast_path(model)
    torch.testing.assert_close(scores(model, batch, precision="float32"), own(model, batch))


def test_training_mode_is_put_back() -> None:
    model = tiny.model().eval()
    with pytest.raises(ValueError, match="inside"), training_mode(model, on=True):  # noqa: PT012
        assert model.training
        raise ValueError("inside")
    assert not model.training


LAYERS = 3
PARTS: tuple[What, ...] = ("queries", "keys", "values", "scores", "probabilities")


def everything(stop: int = LAYERS) -> set[Tap]:
    inside = {Tap(what, k) for what in PARTS for k in range(1, stop + 1)}
    return inside | {Tap("hidden", k) for k in range(stop + 1)}


def rows(kind: str, *, padded: bool = True, masked: bool = False) -> Batch:
    """With `masked`, the second and third token of each text are scored."""
    found = inputs(kind, padded=padded)
    count, width = found["input_ids"].shape
    scored_N = torch.arange(count)[:, None] * width + torch.tensor([1, 2]) if masked else None
    return Batch(found, np.arange(count), scored_N=None if scored_N is None else scored_N.flatten())


def real(state: Tensor, batch: Batch) -> Tensor:
    mask_BT = batch.inputs["attention_mask"].bool()
    return state[mask_BT] if state.ndim == 3 else state.transpose(1, 2)[mask_BT]


def weighted(output: StudentOutput, batch: Batch) -> Tensor:
    assert output.states is not None
    draw = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for _, state in sorted(output.states.found.items()):
        x = real(state, batch)
        total = total + (x * torch.randn(x.shape, generator=draw)).sum()
    return total


def answer(
    model: PreTrainedModel, batch: Batch, *, fast: bool, **settings: object
) -> StudentOutput:
    return run(model, batch, precision="float32", fast=fast, **settings)


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("masked", [False, True], ids=["classifier", "masked_lm"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_fast_states_are_the_models_own(kind: str, masked: bool, padded: bool) -> None:
    model = tiny.model(kind, layers=LAYERS, masked=masked, dropout=0.0)
    batch = rows(kind, padded=padded, masked=masked)
    assert has_fast_path(model)
    with torch.no_grad(), reading(model, everything()) as expected:
        model(**batch.inputs)
    output = answer(model, batch, fast=True, reads=everything())
    assert output.states is not None
    assert torch.equal(output.states.mask_BT, batch.inputs["attention_mask"].bool())
    assert set(output.states.found) == everything()
    for tap, state in expected.items():
        mine = output.states[tap]
        assert mine.shape == state.shape, tap
        if tap.what == "scores":  # of padded keys nothing is said
            keys = batch.inputs["attention_mask"].bool()[:, None, None, :]
            mine, state = (x.masked_fill(~keys, 0.0) for x in (mine, state))
        torch.testing.assert_close(
            real(mine, batch), real(state, batch), atol=1e-5, rtol=1e-5, msg=str(tap)
        )


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("scored", [True, False])
def test_gradients_of_fast_states_are_the_models_own(kind: str, scored: bool) -> None:
    model, batch = tiny.model(kind, layers=LAYERS, dropout=0.0), rows(kind)
    found: list[dict[str, Tensor]] = []
    for fast in (True, False):
        output = answer(model, batch, fast=fast, reads=everything(2), scored=scored)
        total = weighted(output, batch)
        (total + output.scores_NK[:, 0].sum() if scored else total).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    mine, expected = found
    assert mine.keys() == expected.keys()
    assert any(f".{LAYERS - 1}." in name for name in mine) is scored, "the last block's gradients"
    for name, gradient in expected.items():
        scale = 1 + float(gradient.abs().max())
        torch.testing.assert_close(
            mine[name] / scale, gradient / scale, atol=1e-5, rtol=0, msg=name
        )


@pytest.mark.parametrize("kind", [*FAST, "electra", "modernbert"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
def test_reading_does_not_change_the_scores(kind: str, fast: bool) -> None:
    """Not even at the last layer, of which a classifier's scores need the first token only."""
    model, batch = tiny.model(kind, layers=LAYERS), rows(kind)
    expected_BK = answer(model, batch, fast=fast).scores_NK
    assert answer(model, batch, fast=fast).states is None
    for tap in (Tap("hidden", LAYERS), Tap("probabilities", LAYERS), Tap("queries", LAYERS)):
        found = answer(model, batch, fast=fast, reads={tap})
        torch.testing.assert_close(found.scores_NK, expected_BK, atol=1e-6, rtol=1e-6)
        assert found.states is not None
        assert found.states[tap].shape[:1] == expected_BK.shape[:1]


@pytest.mark.parametrize("kind", FAST)
def test_a_modules_output_is_read_in_the_models_own_forward(kind: str) -> None:
    model, batch = tiny.model(kind), rows(kind)
    tap = Tap("module", name=f"{blocks(model)[0]}.0")
    output = answer(model, batch, fast=True, reads={tap, Tap("hidden", 1)})
    assert output.states is not None
    assert torch.equal(output.states[tap], output.states[Tap("hidden", 1)])
    expected_BK = answer(model, batch, fast=False).scores_NK
    assert torch.equal(output.scores_NK, expected_BK)


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("masked", [False, True], ids=["classifier", "masked_lm"])
def test_unscored_nothing_above_the_highest_read_layer_is_computed(kind: str, masked: bool) -> None:
    model, batch = tiny.model(kind, layers=LAYERS, masked=masked), rows(kind, masked=masked)
    broken_ones = dict.fromkeys(range(LAYERS + 1), 0)
    for stop in (0, 1, 2, LAYERS):
        wanted = everything(stop)
        expected = answer(model, batch, fast=True, reads=wanted).states
        broken = tiny.model(kind, layers=LAYERS, masked=masked)
        with torch.no_grad():
            parts = (broken.base_model.embeddings, *blocks(broken)[1][:stop])
            run_through = {id(p) for part in parts for p in part.parameters()}
            for parameter in broken.parameters():
                if id(parameter) not in run_through:
                    broken_ones[stop] += 1
                    parameter.fill_(torch.nan)
        given = fast_weights(broken, "float32", needed(wanted))
        for weights in (None, given):
            output = answer(broken, batch, fast=True, reads=wanted, scored=False, weights=weights)
            assert output.scores_NK.shape == (len(TEXTS), 0)
            assert output.states is not None
            assert expected is not None
            for tap in wanted:
                assert torch.equal(output.states[tap], expected[tap]), tap
    assert broken_ones[0] > broken_ones[1] > broken_ones[2] > broken_ones[LAYERS] > 0


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("layer", [1, LAYERS])
def test_attention_alone_ends_inside_its_block(kind: str, layer: int) -> None:
    """Relations of the last layer need no feed-forward of it: not computed, not decayed."""
    model, batch = tiny.model(kind, layers=LAYERS), rows(kind)
    wanted = [Tap("values", layer), Tap("scores", layer)]
    expected = answer(model, batch, fast=True, reads=wanted).states
    broken = tiny.model(kind, layers=LAYERS)
    with torch.no_grad():
        for name, parameter in blocks(broken)[1][layer - 1].named_parameters():
            if not any(part in name for part in ("query", "key", "value", "_lin")):
                parameter.fill_(torch.nan)
            if "out_lin" in name:
                parameter.fill_(torch.nan)
    found = answer(broken, batch, fast=True, reads=wanted, scored=False).states
    assert expected is not None
    assert found is not None
    assert all(torch.equal(found[tap], expected[tap]) for tap in wanted)
    trained = {id(layer) for group in fast_layers(broken, needed(wanted)) for layer in group}
    assert len(trained) == 3 + 8 * (layer - 1)


@pytest.mark.parametrize("kind", [*FAST, "electra", "modernbert"])
def test_unscored_states_of_the_own_forward_are_the_same(kind: str) -> None:
    for masked in (False, True):
        model, batch = tiny.model(kind, layers=LAYERS, masked=masked), rows(kind, masked=masked)
        expected = answer(model, batch, fast=False, reads=everything()).states
        output = answer(model, batch, fast=False, reads=everything(), scored=False)
        assert output.scores_NK.shape == (len(TEXTS), 0)
        assert expected is not None
        assert output.states is not None
        assert all(torch.equal(output.states[tap], expected[tap]) for tap in everything())


@pytest.mark.parametrize("kind", [*FAST, "electra", "modernbert"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_masked_language_models_score_chosen_tokens(kind: str, fast: bool, padded: bool) -> None:
    model = tiny.model(kind, layers=LAYERS, masked=True)
    batch = rows(kind, padded=padded, masked=True)
    assert has_fast_path(model) is (kind in FAST)
    with torch.no_grad():
        full_NV = own(model, batch.inputs).flatten(0, 1)[batch.scored_N]
    output = answer(model, batch, fast=fast)
    assert output.scores_NK.shape == (2 * len(batch.rows), model.config.vocab_size)
    assert full_NV.std(0).max() > 0.01
    torch.testing.assert_close(output.scores_NK, full_NV, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAST)
def test_gradients_of_chosen_tokens_are_those_of_all(kind: str) -> None:
    model, batch = tiny.model(kind, masked=True, dropout=0.0), rows(kind, masked=True)
    draw = torch.Generator().manual_seed(0)
    weights_NV = torch.randn(len(batch.scored_N), model.config.vocab_size, generator=draw)
    (own(model, batch.inputs).flatten(0, 1)[batch.scored_N] * weights_NV).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    (answer(model, batch, fast=True).scores_NK * weights_NV).sum().backward()
    for name, parameter in model.named_parameters():
        scale = 1 + float(expected[name].abs().max())
        torch.testing.assert_close(
            parameter.grad / scale, expected[name] / scale, atol=1e-5, rtol=0, msg=name
        )


@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
def test_token_types_are_dropped_where_a_model_has_none(kind: str, fast: bool) -> None:
    """A BERT's student shares its tokenizer."""
    model = tiny.model(kind)
    given = inputs("bert", pairs=True)
    assert given["token_type_ids"].any()
    bare = {name: t for name, t in given.items() if name != "token_type_ids"}
    expected_BK = scores(model, bare, precision="float32", fast=fast)
    seen: list[str] = []
    for module in (model, model.base_model):
        module.register_forward_pre_hook(
            lambda _, __, kwargs: seen.extend(kwargs), with_kwargs=True
        )
    assert torch.equal(scores(model, given, precision="float32", fast=fast), expected_BK)
    fast_alone = fast and has_fast_path(model)
    assert ("input_ids" in seen) is not fast_alone
    assert "token_type_ids" not in seen


@pytest.mark.parametrize("kind", ["bert", "electra"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "own"])
def test_token_types_stay_where_a_model_has_them(kind: str, fast: bool) -> None:
    model, given = tiny.model(kind), inputs(kind, pairs=True)
    bare = {name: t for name, t in given.items() if name != "token_type_ids"}
    found_BK, other_BK = (scores(model, x, precision="float32", fast=fast) for x in (given, bare))
    assert not torch.allclose(found_BK, other_BK, atol=1e-3)
