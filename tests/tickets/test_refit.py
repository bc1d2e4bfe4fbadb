"""What stays takes over what goes: least squares, and nothing lost where nothing need be.

Axes: N tokens, U units, H hidden.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.models.student import blocks
from stillhouse.models.surgery import Kept, cut, everything
from stillhouse.removal import prepared, rows_of
from stillhouse.tickets.config import RemoveConfig
from stillhouse.tickets.refit import Refit, solved
from stillhouse.tickets.worth import Damage

ROWS = np.arange(40)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path: Path = tmp_path_factory.mktemp("refit")
    tiny.save(path / "model", layers=2, num_attention_heads=4, dropout=0.0)
    tiny.reviews(path / "reviews.csv")
    values = {
        "model": str(path / "model"),
        "data": {"path": str(path / "reviews.csv"), "max_length": 32},
        "layers": 1,
        "cache": str(path / "cache"),
    }
    setup = prepared(parse(RemoveConfig, values), Silent())
    return setup.teacher, rows_of(setup, Silent())


def test_the_weights_are_those_of_least_squares() -> None:
    gen = torch.Generator().manual_seed(0)
    x_NU = torch.randn(500, 8, generator=gen) @ torch.randn(8, 8, generator=gen) + 0.5
    weight_HU = torch.randn(3, 8, generator=gen)
    ones = torch.cat([x_NU, torch.ones(500, 1)], 1)
    units = torch.tensor([0, 2, 3, 6])
    weight, bias = solved(ones.T @ ones / 500, weight_HU, units)
    design = torch.cat([x_NU[:, units], torch.ones(500, 1)], 1)
    best = torch.linalg.lstsq(design, x_NU @ weight_HU.T).solution
    assert torch.allclose(weight, best[:-1].T, rtol=0.02, atol=0.02)
    assert torch.allclose(bias, best[-1], rtol=0.02, atol=0.02)


def test_a_unit_that_another_repeats_is_not_missed(parts: tuple[Any, Any]) -> None:
    model, data = copy.deepcopy(parts[0]), parts[1]
    block = blocks(model)[1][1]
    with torch.no_grad():
        block.intermediate.dense.weight[9] = block.intermediate.dense.weight[4]
        block.intermediate.dense.bias[9] = block.intermediate.dense.bias[4]
        block.output.dense.weight *= 4
    first, second = everything(model)
    without = [first, Kept(2, second.heads, tuple(n for n in second.neurons if n != 9))]
    plain, refitted = (
        Damage(model, data, ROWS, cut=made)(without) for made in (None, Refit(model, data, ROWS))
    )
    assert plain > 1e-5
    assert refitted < 0.01 * plain


def test_the_damage_of_a_deep_cut_is_less(parts: tuple[Any, Any]) -> None:
    model, data = parts
    kept = [Kept(k.layer, k.heads[:2], k.neurons[:16]) for k in everything(model)]
    plain, refitted = (
        Damage(model, data, ROWS, cut=made)(kept) for made in (None, Refit(model, data, ROWS))
    )
    assert refitted < 0.5 * plain


def test_padding_is_not_fitted_to(parts: tuple[Any, Any]) -> None:
    """Rows alone, which have no padding, give the same moments as a batch of them."""
    model, data = parts
    together = Refit(model, data, np.arange(5))._moments
    lengths = data.lengths[:5]
    alone = [Refit(model, data, np.array([row]))._moments for row in range(5)]
    for key, moment in together.items():
        counts = np.ones(5) if key[0] == 2 else lengths  # a classifier's last layer: first tokens
        mean = sum(n * each[key] for n, each in zip(counts, alone, strict=True)) / counts.sum()
        assert torch.allclose(moment, mean, atol=1e-4)
    assert len(set(lengths.tolist())) > 1


def test_the_last_layer_is_fitted_to_what_the_head_reads(parts: tuple[Any, Any]) -> None:
    """Its other tokens may be anything."""
    model, data = parts
    block = blocks(model)[1][1]
    seen: list[Any] = []
    handle = block.output.dense.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    moments = Refit(model, data, np.arange(5))._moments[2, "output.dense"]
    handle.remove()
    x_NU = torch.cat([seen[0][:, 0], torch.ones(5, 1)], 1).detach()
    assert torch.allclose(moments, x_NU.T @ x_NU / 5, atol=1e-5)


def test_a_whole_model_stays_as_it_is(parts: tuple[Any, Any]) -> None:
    model, data = parts
    found = Refit(model, data, ROWS)(everything(model)).state_dict()
    whole = cut(model, everything(model)).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
