"""Removal for a target: what goes is what is worth least, and the target is met or refused.

Axes: B examples, A heads, F neurons, K choices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.models.forward import run
from stillhouse.models.student import blocks, parameters
from stillhouse.models.surgery import Kept, cut, everything, sizes
from stillhouse.removal import prepared, rows_of
from stillhouse.tickets import remove as removing
from stillhouse.tickets.config import RemoveConfig
from stillhouse.tickets.remove import remove
from stillhouse.tickets.worth import Damage, best_units, unit_worth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remove")
    tiny.save(path / "model", layers=3, num_attention_heads=4, dropout=0.0)
    tiny.reviews(path / "reviews.csv")
    return path


def config(folder: Path, **changes: Any) -> RemoveConfig:
    values = {
        "model": str(folder / "model"),
        "data": {"path": str(folder / "reviews.csv"), "max_length": 32},
        "score_rows": 40,
        "runtime": "torch",
        "cache": str(folder / "cache"),
        **changes,
    }
    return parse(RemoveConfig, values)


@pytest.fixture(scope="module")
def parts(folder: Path) -> tuple[Any, Any]:
    setup = prepared(config(folder, layers=1), Silent())
    return setup.teacher, rows_of(setup, Silent())


def test_worth_is_the_mean_square_of_a_gates_gradient(parts: tuple[Any, Any]) -> None:
    """By finite differences on single examples, with the same drawn answers."""
    model, data = parts
    rows = np.arange(3)
    heads, neurons = unit_worth(model, data, rows, np.random.default_rng(0))
    assert [len(h) for h in heads] == [4, 4, 4]
    assert [len(n) for n in neurons] == [64, 64, 64]
    noise_BK = np.random.default_rng(0).gumbel(size=(3, 2)).astype(np.float32)
    logp_BK = run(model, data.batch(rows), precision="float32", fast=False).scores_NK.log_softmax(
        -1
    )
    drawn_B = (logp_BK.detach() + torch.from_numpy(noise_BK)).argmax(-1)

    def logp(example: int, layer: int, head: int, factor: float) -> float:
        changed = tiny_copy(model)
        after = blocks(changed)[1][layer].attention.output.dense
        with torch.no_grad():
            after.weight[:, head * 8 : head * 8 + 8] *= factor
        changed.double()
        found = changed(**data.batch(np.array([example])).inputs).logits.log_softmax(-1)
        return float(found[0, drawn_B[example]].detach())

    for layer, head in ((0, 1), (2, 3)):
        slopes = [
            (logp(i, layer, head, 1.001) - logp(i, layer, head, 0.999)) / 0.002 for i in range(3)
        ]
        assert float(heads[layer][head]) == pytest.approx(np.mean(np.square(slopes)), rel=1e-3)


def tiny_copy(model: Any) -> Any:
    import copy

    return copy.deepcopy(model)


def test_a_head_that_does_nothing_is_worth_nothing(folder: Path, parts: tuple[Any, Any]) -> None:
    model, data = tiny_copy(parts[0]), parts[1]
    with torch.no_grad():
        blocks(model)[1][1].attention.output.dense.weight[:, 16:24] = 0
        blocks(model)[1][0].output.dense.weight[:, 5] = 0
    heads, neurons = unit_worth(model, data, np.arange(10), np.random.default_rng(0))
    assert float(heads[1][2]) == 0
    assert float(neurons[0][5]) == 0
    assert 2 not in best_units(heads[1], 3)
    kept = [k for k in everything(model) if k.layer != 2]
    kept.insert(1, Kept(2, best_units(heads[1], 3), tuple(range(64))))
    assert Damage(model, data, np.arange(10))(kept) == pytest.approx(0, abs=1e-6)


def test_damage_is_the_divergence_from_the_whole(parts: tuple[Any, Any]) -> None:
    model, data = parts
    damage = Damage(model, data, np.arange(12))
    assert damage(everything(model)) == pytest.approx(0, abs=1e-6)
    kept = everything(model)[:2]
    batch = data.batch(np.arange(12))
    with torch.no_grad():
        p, q = (m(**batch.inputs).logits.log_softmax(-1) for m in (model, cut(model, kept)))
    assert damage(kept) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "layers", "heads", "neurons"),
    [
        ({"layers": 2}, 2, 4, 64),
        ({"heads": 1}, 3, 1, 64),
        ({"neurons": 10}, 3, 4, 10),
        ({"layers": 1, "heads": 2, "neurons": 7}, 1, 2, 7),
    ],
)
def test_explicit_counts_are_met(
    folder: Path, parts: tuple[Any, Any], asked: Any, layers: int, heads: int, neurons: int
) -> None:
    found = remove(config(folder, **asked), *parts, progress=Silent())
    own = sizes(found.model)
    assert own.heads == (heads,) * layers
    assert own.neurons == (neurons,) * layers
    assert found.damage >= 0


def test_the_layer_that_goes_is_the_one_that_damages_least(
    folder: Path, parts: tuple[Any, Any]
) -> None:
    model, data = parts
    found = remove(config(folder, layers=2), model, data, progress=Silent())
    rows = np.sort(removing.generator(0, "worth").permutation(len(data))[:40])
    damage = Damage(model, data, rows)
    every = [[k for k in everything(model) if k.layer != gone] for gone in (1, 2, 3)]
    assert found.damage == pytest.approx(min(map(damage, every)))


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_a_share_of_the_parameters_is_met_and_not_undershot_by_much(
    folder: Path, parts: tuple[Any, Any], share: float
) -> None:
    model, data = parts
    found = remove(config(folder, parameters=share), model, data, progress=Silent())
    left = parameters(found.model) / parameters(model)
    assert share - 0.12 < left <= share


def test_only_what_may_go_goes(folder: Path, parts: tuple[Any, Any]) -> None:
    model, data = parts
    found = remove(
        config(folder, parameters=0.85, what=("neurons",)), model, data, progress=Silent()
    )
    assert sizes(found.model).heads == (4, 4, 4)
    assert sum(sizes(found.model).neurons) < 192


def test_a_speed_is_reached_as_measured(
    folder: Path, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts: 1 a model, 1 a layer, a tenth a head, a hundredth a neuron."""
    monkeypatch.setattr(removing, "Clock", lambda *_: lambda models: [counted(m) for m in models])
    model, data = parts
    found = remove(config(folder, speedup=2.0), model, data, progress=Silent())
    assert counted(model) / counted(found.model) >= 2.0
    assert (found.before_s, found.after_s) == (counted(model), counted(found.model))
    assert counted(model) / counted(found.model) < 2.6


@pytest.mark.slow
@pytest.mark.parametrize("asked", [1.2, 1.5, 1.75, 1.95, 2.2, 2.45, 2.6])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_no_more_speed_is_bought_than_was_asked(
    folder: Path, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, asked: float,
    noise: float,
) -> None:  # fmt: skip
    """A clock that is not linear in what goes, and shakes."""
    rng = np.random.default_rng(0)

    def seconds(model: Any) -> float:
        own = sizes(model)
        blocks_s = sum(
            1 + h**0.5 + 0.2 * n**0.5 for h, n in zip(own.heads, own.neurons, strict=True)
        )
        return (1.0 + blocks_s) * float(np.exp(noise * rng.normal()))

    monkeypatch.setattr(removing, "Clock", lambda *_: lambda models: [seconds(m) for m in models])
    model, data = parts
    found = remove(config(folder, speedup=asked), model, data, progress=Silent())
    assert asked <= found.times < 1.5 * asked


@pytest.mark.parametrize("asked", [{"heads": 1}, {"neurons": 20}, {"heads": 1, "neurons": 32}])
def test_what_is_narrow_already_can_be_cut_for_speed(
    folder: Path, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    monkeypatch.setattr(removing, "Clock", lambda *_: lambda models: [counted(m) for m in models])
    model, data = parts
    narrow = remove(config(folder, **asked), model, data, progress=Silent()).model
    found = remove(config(folder, speedup=1.2), narrow, data, progress=Silent())
    assert counted(narrow) / counted(found.model) >= 1.2


def test_one_layer_can_be_cut_for_speed(
    folder: Path, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "Clock", lambda *_: lambda models: [counted(m) for m in models])
    model, data = parts
    one = remove(config(folder, layers=1), model, data, progress=Silent()).model
    found = remove(config(folder, speedup=1.2), one, data, progress=Silent())
    assert 1.2 <= found.times < 1.4


def counted(model: Any) -> float:
    own = sizes(model)
    return 1.0 + len(own.heads) + 0.1 * sum(own.heads) + 0.01 * sum(own.neurons)


def test_a_target_that_nothing_reaches_names_the_nearest(
    folder: Path, parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "Clock", lambda *_: lambda models: [counted(m) for m in models])
    with pytest.raises(UsageError, match=r"is 50 times as fast .* nearest is 2\.94") as caught:
        remove(config(folder, speedup=50), *parts, progress=Silent())
    assert "\n" not in str(caught.value)
    scored = "scored before the targets were checked"
    monkeypatch.setattr(removing, "unit_worth", lambda *_: pytest.fail(scored))
    with pytest.raises(UsageError, match=r"leaves 5% of the parameters: the nearest leaves 28\.2%"):
        remove(config(folder, parameters=0.05), *parts, progress=Silent())
    with pytest.raises(UsageError, match="9 heads can't stay of 4"):
        remove(config(folder, heads=9), *parts, progress=Silent())


@pytest.mark.parametrize(
    "targets", [{}, {"speedup": 2, "parameters": 0.5}, {"speedup": 2, "layers": 1}]
)
def test_one_target_is_asked(folder: Path, targets: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="give one target"):
        config(folder, **targets)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("runtime", ["torch", "onnx", "onnx-int8"])
def test_real_clocks_run(folder: Path, parts: tuple[Any, Any], runtime: Any) -> None:
    found = remove(config(folder, speedup=1.2, runtime=runtime), *parts, progress=Silent())
    assert found.before_s is not None
    assert found.after_s is not None
    assert found.before_s / found.after_s >= 1.2
