"""Row: padded student vocabulary filled with 0, not -inf. A padded vocabulary changes nothing.

Axes: N rows, K choices.
"""

from __future__ import annotations

import math

import pytest
import torch

import tiny
from stillhouse.numerics import divergences as d


@pytest.mark.parametrize("name", tiny.DIVERGENCES)
@pytest.mark.parametrize("standardised", [False, True])
def test_padding_both_vocabularies_changes_no_value_and_no_gradient(
    name: str, standardised: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    mine_NK, theirs_NK = (2 * torch.randn(20, 6, generator=draw) for _ in range(2))
    options = dict(tiny.DIVERGENCES[name])
    if name == "decoupled":
        options["target_N"] = torch.arange(20) % 6
    found = []
    for padding in (0, 3):
        student = mine_NK.clone().requires_grad_(True)
        pad = torch.full((20, padding), -math.inf)
        both = [torch.cat([x, pad], 1) for x in (student, theirs_NK)]
        if standardised:
            both = [d.standardise(x) for x in both]
        loss_N = d.DIVERGENCES[name](*both, **options)
        loss_N.sum().backward()
        found.append((loss_N.detach(), student.grad))
    for plain, padded in zip(*found, strict=True):
        assert torch.isfinite(padded).all()
        torch.testing.assert_close(padded, plain, atol=1e-6, rtol=1e-5)
