"""What a model costs to run: counted exactly where it can be, timed in turns where it can't."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from families import zoo
from stillhouse.evaluation.efficiency import (
    BATCH,
    flops,
    folder_bytes,
    measure,
    peak_memory,
    samples,
    time_all,
    torch_runner,
)
from stillhouse.models.load import load_classifier
from stillhouse.models.mlp import MLPClassifier, MLPConfig
from stillhouse.models.surgery import Kept, cut, everything


def test_flops_by_hand() -> None:
    """Two per multiply-add: 6 x 5 + 5 x 3 a row."""
    model = MLPClassifier(MLPConfig(inputs=6, hidden=(5,), num_labels=3)).eval()
    assert flops(model, {"vectors": torch.zeros(4, 6)}) == 2 * 4 * (6 * 5 + 5 * 3)


def test_flops_count_the_products_of_attention() -> None:
    """However they are computed: two of T x T x H a layer, two operations each."""
    batch = {"input_ids": torch.ones(1, 12, dtype=torch.long)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    model = tiny.model(layers=2, hidden=32)
    found = {}
    for kind in ("eager", "sdpa"):
        model.set_attn_implementation(kind)
        found[kind] = flops(model, batch)
    assert found["eager"] == found["sdpa"]
    linear = 2 * 12 * (4 * 32 * 32 + 2 * 32 * 64) * 2 + 2 * (32 * 32 + 32 * 2)
    assert found["sdpa"] == linear + 2 * 2 * 2 * 12 * 12 * 32


def test_flops_of_functions_with_gradients_of_their_own_are_counted() -> None:
    """DeBERTa's softmax is one; what is trained stays so."""
    batch = {"input_ids": torch.full((1, 12), 7)}
    for family in ("deberta", "deberta-v2"):
        model = zoo.model(family)
        next(model.parameters()).requires_grad_(False)
        held = [p.requires_grad for p in model.parameters()]
        linear = 2 * 12 * (4 * 32 * 32 + 2 * 32 * 64) * zoo.LAYERS
        assert linear < (flops(model, batch) or 0) < 8 * linear
        assert [p.requires_grad for p in model.parameters()] == held


class Uncountable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise AssertionError("not under a counter")
        return self.weight


def test_flops_that_cannot_be_counted_are_none() -> None:
    assert flops(Uncountable(), {}) is None


def test_samples_are_rows_of_middling_length() -> None:
    data = tiny.vectors(100)
    data.source.lengths = np.arange(100)[::-1].copy()  # pyright: ignore
    one, many = samples(data)
    assert len(one["vectors"]) == 1
    assert len(many["vectors"]) == BATCH
    assert torch.equal(one["vectors"], data.batch(np.array([49])).inputs["vectors"])
    few = tiny.vectors(5)
    assert len(samples(few)[1]["vectors"]) == 5


def test_models_are_timed_in_turns() -> None:
    calls: list[str] = []
    inputs = {"vectors": torch.zeros(1, 5)}

    def runner(name: str) -> Callable[..., object]:
        return lambda _: calls.append(name)

    timings = time_all({n: (runner(n), inputs, inputs) for n in "ab"}, rounds=3)
    assert set(timings) == {"a", "b"}
    order = "".join(calls[12:])  # after the warm-up
    assert order == "aaaaaabbbbbb" + "aaaaabbbbb" * 2
    for timing in timings.values():
        assert 0 < timing.latency_ms <= timing.latency_p95_ms
        assert timing.throughput_per_s > 0


def test_throughput_counts_the_rows_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a run takes a second, whatever it is given."""
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    one, many = ({"vectors": torch.zeros(rows, 5)} for rows in (1, BATCH))
    found = time_all({"a": (lambda inputs: None, one, many)}, rounds=3)["a"]
    assert (found.latency_ms, found.throughput_per_s) == (1e3, BATCH)


def test_a_measurement_counts_the_saved_model(tmp_path: Path) -> None:
    model = tiny.model()
    tiny.save(tmp_path)
    one = dict(tiny.tokenizer()("good film", return_tensors="pt"))
    found = measure(model, tmp_path, None, one, tokens=8, memory=False)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.bytes == folder_bytes(tmp_path) == (tmp_path / "model.safetensors").stat().st_size
    assert found.bytes == pytest.approx(4 * found.parameters, rel=0.2)
    assert found.flops is not None
    assert found.flops > 0
    assert found.latency_ms is None
    assert found.peak_memory_bytes is None


def test_a_runner_answers_without_dropout_or_gradient() -> None:
    model = tiny.model(dropout=0.5).train()
    run = torch_runner(model)
    one = dict(tiny.tokenizer()("good film", return_tensors="pt"))
    first, second = run(one), run(one)
    assert torch.equal(first.logits, second.logits)  # pyright: ignore
    assert not first.logits.requires_grad  # pyright: ignore


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    found = peak_memory(tiny.save(tmp_path), 16)
    assert found is not None
    assert 0 < found < 64e6, "a tiny model needs next to nothing beyond the libraries"
    larger = peak_memory(tiny.save(tmp_path / "larger", hidden=768, layers=3), 16)
    assert larger is not None
    assert larger > found + 30e6
    assert peak_memory(tmp_path / "nothing", 16) is None


@pytest.mark.slow
def test_a_cut_model_has_a_peak_memory_too(tmp_path: Path) -> None:
    model = load_classifier(str(tiny.save(tmp_path / "whole")))
    kept = [Kept(each.layer, each.heads[:1], each.neurons) for each in everything(model)]
    cut(model, kept).save_pretrained(tmp_path / "cut")
    assert (peak_memory(tmp_path / "cut", 16) or 0) > 0
