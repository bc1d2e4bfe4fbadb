"""What taps read is what the model computes; what they replace goes on; reading leaves no trace.

References are transformers' own `output_hidden_states` and `output_attentions` (of the same
weights with eager attention), and projections, rotary positions and windows done by hand.

Axes: B examples, T tokens, H hidden, A heads, D width of a head, K choices.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    PreTrainedModel,
)

import tiny
from stillhouse.core.errors import ModelError
from stillhouse.core.types import Tap, What
from stillhouse.models import taps
from stillhouse.models.student import blocks
from stillhouse.models.taps import ATTENTION, PARTS, check_taps, geometry, reading

LAYERS, HEADS, WIDTH = 3, 2, 32
# The linear layer, inside a block, that takes what attention gives.
OUTPUT = {"distilbert": "attention.out_lin", "modernbert": "attn.Wo"}
TEXTS = [text for text, _ in tiny.sentences(6)]
SHAPES = ["padded", "unpadded", "pairs"]
every_kind = pytest.mark.parametrize("kind", tiny.KINDS)
every_own = pytest.mark.parametrize("own", ["eager", "sdpa"])


def texts(kind: str, shape: str = "padded") -> Mapping[str, Tensor]:
    first, second = TEXTS, TEXTS[::-1] if shape == "pairs" else None
    if shape == "unpadded":
        first = ["the film was good and the soup", "a room is cold but the train"]
    found = dict(tiny.tokenizer(kind)(first, second, padding=True, return_tensors="pt"))
    assert bool(found["attention_mask"].all()) is (shape == "unpadded")
    return found


def model_of(kind: str, own: str = "sdpa", **settings: Any) -> PreTrainedModel:
    found = tiny.model(kind, layers=LAYERS, **{"dropout": 0.0, **settings})
    found.set_attn_implementation(own)
    return found


def parts(*names: What, layers: range = range(1, LAYERS + 1)) -> set[Tap]:
    return {Tap(name, k) for name in names for k in layers}


def everything() -> set[Tap]:
    hidden = parts("hidden", layers=range(LAYERS + 1))
    return hidden | parts("queries", "keys", "values", "scores", "probabilities")


def read(
    model: nn.Module, batch: Mapping[str, Tensor], wanted: set[Tap]
) -> tuple[Tensor, dict[Tap, Tensor]]:
    with reading(model, wanted) as found:
        logits_BK = model(**batch).logits
    assert set(found) == wanted
    return logits_BK, found


def real(state: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The rows of real tokens: what padding gets differs between implementations."""
    mask_BT = batch["attention_mask"].bool()
    return state[mask_BT] if state.ndim == 3 else state.transpose(1, 2)[mask_BT]


def allowed(model: Any, batch: Mapping[str, Tensor], layer: int) -> Tensor:
    """Which keys a query may see, B x 1 x T x T."""
    mask_BT = batch["attention_mask"].bool()
    count = mask_BT.shape[1]
    seen = mask_BT[:, None, None, :].expand(-1, 1, count, -1)
    kinds = getattr(model.config, "layer_types", None)
    if kinds and kinds[layer - 1] == "sliding_attention":
        at = torch.arange(count)
        seen = seen & ((at[:, None] - at).abs() <= model.config.local_attention // 2)
    return seen


def softmax(scores: Tensor, seen: Tensor) -> Tensor:
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)


def own_states(model: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """transformers' hidden states; ModernBERT's last one before its final norm."""
    held: list[Tensor] = []
    last = blocks(model)[1][-1]
    hook = last.register_forward_hook(lambda _, __, output: held.append(output))
    with torch.no_grad():
        found = list(model(**batch, output_hidden_states=True).hidden_states)
    hook.remove()
    if model.config.model_type == "modernbert":
        torch.testing.assert_close(model.model.final_norm(held[0]), found[-1])
        found[-1] = held[0]
    return found


def output_name(model: Any, layer: int) -> str:
    name = OUTPUT.get(model.config.model_type, "attention.output.dense")
    return f"{blocks(model)[0]}.{layer - 1}.{name}"


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@every_kind
def test_every_family_is_tried(kind: str) -> None:
    assert kind in ATTENTION
    model = model_of(kind)
    every_second = frozenset({2, 4} if kind == "modernbert" else ()) & set(range(1, LAYERS + 1))
    assert geometry(model) == taps.Geometry(LAYERS, WIDTH, HEADS, WIDTH, every_second)
    if kind == "electra":
        assert model.config.embedding_size != model.config.hidden_size
    if kind == "modernbert":
        assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}


def test_no_family_is_forgotten() -> None:
    assert set(ATTENTION) == set(tiny.KINDS)


@every_kind
@every_own
@pytest.mark.parametrize("shape", SHAPES)
def test_states_are_transformers_own(kind: str, own: str, shape: str) -> None:
    model, batch = model_of(kind, own), texts(kind, shape)
    with torch.no_grad():
        _, found = read(model, batch, everything())
    expected = own_states(model, batch)
    assert len(expected) == LAYERS + 1
    for k, state_BTH in enumerate(expected):
        assert torch.equal(found[Tap("hidden", k)], state_BTH), k
    eager = model_of(kind, "eager")
    with torch.no_grad():
        attentions = eager(**batch, output_attentions=True).attentions
    for k, weights_BATT in enumerate(attentions, 1):
        mine_BATT = found[Tap("probabilities", k)]
        close(real(mine_BATT, batch), real(weights_BATT, batch))
        seen = allowed(model, batch, k)
        expected_BATT = softmax(found[Tap("scores", k)], seen)
        close(real(mine_BATT, batch), real(expected_BATT, batch))
        hidden_keys = mine_BATT.masked_select(
            ~seen & batch["attention_mask"][:, None, :, None].bool()
        )
        assert (hidden_keys == 0).all()
    if kind == "modernbert" and shape != "unpadded":
        assert not allowed(model, batch, 2)[0, 0, 0].all(), "the window must hide something"


def rotated(x_BATD: Tensor, base: float) -> Tensor:
    """Su et al. 2021: halves (a, b) of a head are turned by position x base^(-2i/D)."""
    size, count = x_BATD.shape[-1], x_BATD.shape[-2]
    angle = torch.arange(count)[:, None] * base ** (-torch.arange(0, size, 2) / size)
    a, b = x_BATD.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def projected(model: Any, layer: int, before_BTH: Tensor) -> list[Tensor]:
    """Queries, keys and values of a block, from the states before it, by hand."""
    block: Any = blocks(model)[1][layer - 1]
    family = model.config.model_type
    if family == "modernbert":
        weight = block.attn.Wqkv.weight
        flat = [F.linear(block.attn_norm(before_BTH), w) for w in weight.chunk(3)]
    elif family == "distilbert":
        own = block.attention
        flat = [layer(before_BTH) for layer in (own.q_lin, own.k_lin, own.v_lin)]
    else:
        own = block.attention.self
        flat = [layer(before_BTH) for layer in (own.query, own.key, own.value)]
    q, k, v = (x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for x in flat)
    if family == "modernbert":
        kind = model.config.layer_types[layer - 1]
        base = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}[kind]
        q, k = rotated(q, base), rotated(k, base)
    return [q, k, v]


@every_kind
@every_own
@torch.no_grad()
def test_queries_keys_values_and_scores_by_hand(kind: str, own: str) -> None:
    model, batch = model_of(kind, own), texts(kind)
    _, found = read(model, batch, everything())
    shape = (*batch["input_ids"].shape[:1], HEADS, batch["input_ids"].shape[1], WIDTH // HEADS)
    for k in range(1, LAYERS + 1):
        expected = projected(model, k, found[Tap("hidden", k - 1)])
        for what, value_BATD in zip(("queries", "keys", "values"), expected, strict=True):
            mine_BATD = found[Tap(what, k)]
            assert mine_BATD.shape == shape
            close(mine_BATD, value_BATD)
        q, key = found[Tap("queries", k)], found[Tap("keys", k)]
        scores_BATT = torch.einsum("batd,basd->bats", q, key) / (WIDTH // HEADS) ** 0.5
        assert scores_BATT.std() > 0.1
        close(found[Tap("scores", k)], scores_BATT)


@every_kind
@every_own
@pytest.mark.parametrize("masked", [False, True], ids=["classifier", "masked_lm"])
def test_reading_changes_no_bit(kind: str, own: str, masked: bool) -> None:
    model, batch = model_of(kind, own, masked=masked), texts(kind)
    expected = model(**batch).logits
    assert torch.equal(read(model, batch, everything())[0], expected)
    assert torch.equal(read(model, batch, {Tap("scores", 2)})[0], expected)
    assert torch.equal(model(**batch).logits, expected)


@every_own
def test_models_run_as_they_always_do(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are not read never come to us; those that are go on to their own attention."""
    model, batch = model_of("bert", own), texts("bert")
    calls = 0
    plain = F.scaled_dot_product_attention

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    inner = [block.attention.self for block in blocks(model)[1]]
    for wanted, swapped in (({Tap("probabilities", 2)}, [2]), (everything(), [1, 2, 3])):
        calls = 0
        with reading(model, wanted):
            for k, module in enumerate(inner, 1):
                assert (module.config is model.config) is (k not in swapped)
            model(**batch)
        assert calls == (LAYERS if own == "sdpa" else 0)
    calls = 0
    with reading(model, (), replace={Tap("scores", 1): lambda x: x}):
        model(**batch)
    assert calls == (LAYERS - 1 if own == "sdpa" else 0)
    calls = 0
    with reading(model, {Tap("hidden", 1)}):
        assert not taps._active
        model(**batch)
    assert calls == (LAYERS if own == "sdpa" else 0)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@every_kind
@every_own
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_everything_is_put_back(kind: str, own: str, ends: str) -> None:
    model = model_of(kind, own)
    configs = {name: getattr(m, "config", None) for name, m in model.named_modules()}
    held = {name: dict(vars(config)) for name, config in configs.items() if config is not None}
    name = output_name(model, 1)
    before = hooks(model)
    with pytest.raises(KeyboardInterrupt) if ends == "badly" else contextlib.nullcontext():
        with reading(model, everything() | {Tap("module", name=name)}):
            model(**texts(kind))
            assert len(taps._active) == LAYERS
            assert hooks(model) > before
            if ends == "badly":
                raise KeyboardInterrupt
    assert not taps._active
    assert hooks(model) == before
    for path, module in model.named_modules():
        assert getattr(module, "config", None) is configs[path], path
        if configs[path] is not None:
            assert vars(configs[path]) == held[path]
    assert model.config._attn_implementation == own


def test_an_error_in_the_forward_leaves_nothing_behind() -> None:
    model = model_of("bert")
    with pytest.raises(ZeroDivisionError):
        with reading(model, (), replace={Tap("values", 2): lambda x: x * (1 // 0)}):
            model(**texts("bert"))
    assert not taps._active
    assert hooks(model) == 0


def weighted(states: Mapping[Tap, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for _, state in sorted(states.items()):
        x = real(state, batch)
        total = total + (x * torch.randn(x.shape, generator=draw)).sum()
    return total


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name, gradient in expected.items():
        scale = 1 + float(gradient.abs().max())
        torch.testing.assert_close(
            found[name] / scale, gradient / scale, atol=1e-5, rtol=0, msg=name
        )


@every_kind
@every_own
def test_gradients_are_eagers(kind: str, own: str) -> None:
    """Of hidden states and probabilities read in either implementation; and probabilities made
    of the scores that were read."""
    batch, eager, model = texts(kind), model_of(kind, "eager"), model_of(kind, own)
    output = eager(**batch, output_hidden_states=True, output_attentions=True)
    inner = {Tap("hidden", k): output.hidden_states[k] for k in (1, 2)}
    inner |= {Tap("probabilities", k): a for k, a in enumerate(output.attentions, 1)}
    weighted(inner, batch).backward()
    expected = gradients(eager)
    wanted = set(inner)
    weighted(read(model, batch, wanted)[1], batch).backward()
    same_gradients(gradients(model), expected)
    wanted = {Tap("scores", tap.layer) if tap.what == "probabilities" else tap for tap in wanted}
    found = read(model, batch, wanted)[1]
    made = {
        Tap("probabilities", tap.layer) if tap.what == "scores" else tap: (
            softmax(state, allowed(model, batch, tap.layer)) if tap.what == "scores" else state
        )
        for tap, state in found.items()
    }
    weighted(made, batch).backward()
    same_gradients(gradients(model), expected)


@every_kind
def test_gradients_of_queries_keys_and_values_reach_the_weights(kind: str) -> None:
    model, batch = model_of(kind), texts(kind)
    wanted = parts("queries", "keys", "values")
    weighted(read(model, batch, wanted)[1], batch).backward()
    mine = gradients(model)
    held = read(model, batch, parts("hidden", layers=range(LAYERS)))[1]
    names: tuple[What, ...] = ("queries", "keys", "values")
    made = {
        Tap(what, k): value
        for k in range(1, LAYERS + 1)
        for what, value in zip(names, projected(model, k, held[Tap("hidden", k - 1)]), strict=True)
    }
    weighted(made, batch).backward()
    same_gradients(mine, gradients(model))


# Replacing.


@every_kind
@every_own
@pytest.mark.parametrize("layer", [0, 1, LAYERS])
@torch.no_grad()
def test_another_texts_states_give_its_answers(kind: str, own: str, layer: int) -> None:
    """With the states of other texts in place of its own, what comes after is theirs."""
    model, batch = model_of(kind, own), texts(kind, "unpadded")
    other = {name: t.flip(0) for name, t in batch.items()}
    tap = Tap("hidden", layer)
    expected_BK, states = read(model, other, {tap})
    with reading(model, {tap}, replace={tap: lambda _: states[tap]}) as found:
        logits_BK = model(**batch).logits
    assert torch.equal(logits_BK, expected_BK)
    assert found[tap] is states[tap], "what is read is what went on"
    assert not torch.allclose(expected_BK, model(**batch).logits)


@every_kind
@pytest.mark.parametrize("at", ["embeddings", "block"])
@torch.no_grad()
def test_another_texts_module_output_gives_its_answers(kind: str, at: str) -> None:
    model, batch = model_of(kind), texts(kind, "unpadded")
    other = {name: t.flip(0) for name, t in batch.items()}
    inside = model.base_model_prefix
    name = f"{inside}.embeddings" if at == "embeddings" else f"{blocks(model)[0]}.1"
    tap = Tap("module", name=name)
    expected_BK, states = read(model, other, {tap})
    with reading(model, (), replace={tap: lambda _: states[tap]}):
        assert torch.equal(model(**batch).logits, expected_BK)


@every_kind
@every_own
@pytest.mark.parametrize("shape", ["padded", "unpadded"])
@pytest.mark.parametrize("what", PARTS)
@torch.no_grad()
def test_a_replaced_part_enters_the_attention(kind: str, own: str, shape: str, what: What) -> None:
    """softmax(queries keys / sqrt D, masked) values by hand, with one of them another; zero scores
    are uniform attention. And from there the model goes on as it is."""
    model, batch, layer = model_of(kind, own), texts(kind, shape), 2
    tap, out = Tap(what, layer), Tap("module", name=output_name(model, layer))
    names: tuple[What, ...] = ("queries", "keys", "values", "scores", "probabilities")
    before_BK, held = read(model, batch, {Tap(name, layer) for name in names} | {out})
    draw = torch.Generator().manual_seed(0)
    new = torch.randn(held[tap].shape, generator=draw)
    if what == "scores":
        new = torch.zeros_like(new)
    seen = allowed(model, batch, layer)
    now = {name: held[Tap(name, layer)] for name in names} | {what: new}
    if what in ("queries", "keys"):
        now["scores"] = now["queries"] @ now["keys"].mT / (WIDTH // HEADS) ** 0.5
    if what != "probabilities":
        now["probabilities"] = softmax(now["scores"], seen)
    if what == "scores":
        share = seen / seen.sum(-1, keepdim=True).clamp(min=1)
        close(real(now["probabilities"], batch), real(share.expand(new.shape), batch))
    context_BTH = (now["probabilities"] @ now["values"]).transpose(1, 2).flatten(2)
    linear: Any = model.get_submodule(out.name)
    expected_BTH = linear(context_BTH)
    wanted = {Tap(name, layer) for name in names} | {out}
    with reading(model, wanted, replace={tap: lambda _: new}) as found:
        logits_BK = model(**batch).logits
    assert torch.equal(found[tap], new)
    for name in names:
        close(real(found[Tap(name, layer)], batch), real(now[name], batch))
    close(real(found[out], batch), real(expected_BTH, batch))
    with reading(model, (), replace={out: lambda _: expected_BTH}):
        close(logits_BK, model(**batch).logits, 1e-4)
    assert (logits_BK - before_BK).abs().max() > 1e-3


@every_kind
@every_own
@torch.no_grad()
def test_replacing_by_the_same_changes_nothing(kind: str, own: str) -> None:
    model, batch = model_of(kind, own), texts(kind)
    expected_BK = model(**batch).logits
    passed = {tap: lambda x: x for tap in everything() if tap.what not in PARTS[3:]}
    passed[Tap("module", name=output_name(model, 1))] = lambda x: x
    with reading(model, (), replace=passed) as found:
        assert torch.equal(model(**batch).logits, expected_BK)
    assert not found, "what is replaced only is not read"
    with reading(model, (), replace={tap: lambda x: x for tap in everything()}):
        close(model(**batch).logits, expected_BK)


def test_gradients_flow_through_what_is_put_in() -> None:
    model, batch = model_of("bert"), texts("bert")
    added = torch.zeros(WIDTH, requires_grad=True)
    with reading(model, (), replace={Tap("hidden", 1): lambda x: x + added}):
        model(**batch).logits[:, 0].sum().backward()
    mine = gradients(model)
    assert float(added.grad.norm()) > 0
    model(**batch).logits[:, 0].sum().backward()
    same_gradients(mine, gradients(model))


# Refusals.


def refused(says: str, model: nn.Module, wanted: set[Tap]) -> None:
    for attempt in (lambda: check_taps(model, wanted), lambda: reading(model, wanted).__enter__()):
        with pytest.raises(ModelError, match=says) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not taps._active
    assert hooks(model) == 0


@pytest.mark.parametrize("what", ["hidden", *PARTS])
def test_a_layer_that_is_not_there_is_refused(what: What) -> None:
    lowest = 0 if what == "hidden" else 1
    says = f"layer {{}} to read {what} of: BertForSequenceClassification has layers {lowest} to 3"
    for layer in (lowest - 1, 4):
        refused(says.format(layer), model_of("bert"), {Tap(what, layer), Tap("hidden", 1)})


def test_a_module_that_is_not_there_is_refused_with_a_hint() -> None:
    model = model_of("bert")
    name = "encoder.layer.0.attention.output.dens"
    refused("unknown module .*known: ", model, {Tap("module", name=name)})
    name = "encoder.layer.0.attention.output.dense"
    says = "did you mean 'bert.encoder.layer.0.attention.output.dense'"
    refused(says, model, {Tap("module", name=name)})


def fnet() -> FNetForSequenceClassification:
    config = FNetConfig(
        vocab_size=65, hidden_size=32, num_hidden_layers=3, intermediate_size=64, pad_token_id=0
    )
    return FNetForSequenceClassification(config).eval()


def albert() -> AlbertForSequenceClassification:
    config = AlbertConfig(
        vocab_size=65, hidden_size=32, embedding_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=64, pad_token_id=0,
    )  # fmt: skip
    return AlbertForSequenceClassification(config).eval()


def test_states_of_an_unknown_family_are_read_but_no_attention() -> None:
    model, batch = fnet(), {"input_ids": texts("bert", "unpadded")["input_ids"]}
    assert geometry(model) == taps.Geometry(3, 32, 0, 0)
    _, found = read(model, batch, parts("hidden", layers=range(4)))
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True).hidden_states
    for k, state_BTH in enumerate(expected):
        assert torch.equal(found[Tap("hidden", k)], state_BTH)
    says = r"attention of fnet can't be read, only that of bert.*use terms of hidden states"
    refused(says, model, {Tap("queries", 1)})


@pytest.mark.parametrize("made", [albert, lambda: nn.Linear(2, 2)], ids=["albert", "linear"])
def test_a_model_without_blocks_is_refused(made: Any) -> None:
    model = made()
    for tap in (Tap("hidden", 1), Tap("scores", 1)):
        refused("can't find the layers of ", model, {tap})
    with pytest.raises(ModelError, match="can't find the layers of "):
        geometry(model)


def test_a_module_without_a_tensor_is_refused() -> None:
    """A whole encoder's output is a record of several."""
    model = model_of("bert")
    with pytest.raises(ModelError, match="module bert gives no tensor"):
        read(model, texts("bert"), {Tap("module", name="bert")})


def test_a_model_is_read_by_one_at_a_time() -> None:
    model, batch = model_of("bert"), texts("bert")
    expected = read(model, batch, {Tap("scores", 2)})[1]
    with reading(model, {Tap("scores", 2)}) as found:
        with pytest.raises(ModelError, match=r"^layer 2 of Bert.* is being read already$"):
            with reading(model, parts("queries") | {Tap("hidden", 1)}):
                pass
        assert len(taps._active) == 1
        assert hooks(model) == 0
        model(**batch)
    assert torch.equal(found[Tap("scores", 2)], expected[Tap("scores", 2)])
    assert not taps._active


def test_a_decoder_has_no_readable_attention() -> None:
    """sdpa is not given its causal mask, so we would not know it."""
    model = model_of("bert", is_decoder=True)
    refused("decoder", model, {Tap("probabilities", 1)})


# Together with other things.


def test_teacher_and_student_are_read_at_once() -> None:
    teacher, student = model_of("bert", "eager"), tiny.model("bert", layers=2, seed=1, dropout=0.0)
    batch = texts("bert")
    apart = [read(teacher, batch, everything())[1], read(student, batch, {Tap("scores", 1)})[1]]
    with reading(teacher, everything()) as one, reading(student, {Tap("scores", 1)}) as two:
        student(**batch)
        teacher(**batch)
    for mine, alone in zip((one, two), apart, strict=True):
        assert mine.keys() == alone.keys()
        assert all(torch.equal(mine[tap], alone[tap]) for tap in mine)


def test_a_second_forward_gives_its_own_states() -> None:
    model = model_of("bert")
    first, second = texts("bert"), texts("bert", "unpadded")
    expected = read(model, second, everything())[1]
    with reading(model, everything()) as found:
        model(**first)
        model(**second)
    assert all(torch.equal(found[tap], expected[tap]) for tap in expected)


@every_kind
@every_own
def test_in_training_probabilities_are_those_before_dropout(kind: str, own: str) -> None:
    model, batch = model_of(kind, own, dropout=0.4).train(), texts(kind)
    torch.manual_seed(3)
    expected_BK = model(**batch).logits
    torch.manual_seed(3)
    logits_BK, found = read(model, batch, everything())
    assert torch.equal(logits_BK, expected_BK)
    for k in range(1, LAYERS + 1):
        weights = real(found[Tap("probabilities", k)], batch)
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not torch.equal(model(**batch).logits, expected_BK)


@every_own
def test_replaced_probabilities_are_dropped_as_the_models_own(own: str) -> None:
    model, batch = model_of("bert", own, dropout=0.4), texts("bert")
    calls = {Tap("probabilities", 1): lambda x: x}
    with reading(model, (), replace=calls), torch.no_grad():
        model.eval()
        close(model(**batch).logits, model(**batch).logits)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train(module is model.bert.encoder.layer[0].attention.self.dropout)
        model.bert.encoder.layer[0].attention.self.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


@every_kind
@every_own
@torch.no_grad()
def test_under_autocast_states_are_those_that_are_computed(kind: str, own: str) -> None:
    model, batch = model_of(kind, own), texts(kind)
    exact = read(model, batch, everything())[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected_BK = model(**batch).logits
        logits_BK, found = read(model, batch, everything())
    assert torch.equal(logits_BK, expected_BK)
    for tap, state in found.items():
        x, y = real(state, batch).float(), real(exact[tap], batch)
        assert float((x - y).norm() / y.norm()) < 0.05, tap


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
@pytest.mark.parametrize("inside", [False, True])
def test_with_gradient_checkpointing(kind: str, inside: bool) -> None:
    """The backward pass computes blocks again: inside the with-block for all that may be read,
    after it for all but scores and probabilities."""
    batch, plain, model = texts(kind), model_of(kind).train(), model_of(kind).train()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    wanted = everything() if inside else parts("hidden", "queries", "keys", "values")
    with reading(plain, wanted) as found:
        plain(**batch)
    weighted(found, batch).backward()
    with reading(model, wanted) as found:
        model(**batch)
        total = weighted(found, batch)
        if inside:
            total.backward()
    if not inside:
        total.backward()
    same_gradients(gradients(model), gradients(plain))


@pytest.mark.parametrize("shape", ["padded", "unpadded"])
@torch.no_grad()
def test_masks_of_flash_attention_are_understood(shape: str) -> None:
    """Its kernel is given which keys are real, B x T, or nothing. (It is never called here: where
    probabilities are replaced, we go on ourselves.)"""
    model, batch = model_of("bert"), texts("bert", shape)
    expected_BK = model(**batch).logits
    model.config._attn_implementation_internal = "flash_attention_2"
    with reading(model, (), replace={tap: lambda x: x for tap in parts("probabilities")}):
        close(model(**batch).logits, expected_BK)


@torch.no_grad()
def test_a_window_that_only_flash_attention_knows_is_refused() -> None:
    model = model_of("modernbert")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ModelError, match="load it with sdpa"):
        with reading(model, (), replace={tap: lambda x: x for tap in parts("probabilities")}):
            model(**texts("modernbert"))


def test_a_tap_there_is_not_is_refused_when_made() -> None:
    """As a user makes it, without the tests' own checks of types."""
    refused = {
        "'score', 3": "did you mean 'scores'",
        "'hidden', '1'": "number from 0",
        "'module'": "read by its name",
        "'hidden', 1, 'bert.pooler'": "read by its name",
    }
    tries = "".join(
        f"try: Tap({given})\nexcept ValueError as error: print(error)\n" for given in refused
    )
    code = f"from stillhouse.core.types import Tap\n{tries}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == len(refused)
    for line, says in zip(said, refused.values(), strict=True):
        assert says in line


def test_reading_before_the_forward_says_what_to_do() -> None:
    model = tiny.model()
    with reading(model, [Tap("hidden", 1)]) as found:
        with pytest.raises(KeyError, match="run the model inside"):
            found[Tap("hidden", 1)]
