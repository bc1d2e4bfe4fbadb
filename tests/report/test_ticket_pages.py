"""The pages of tickets and of their transfer say what the numbers are."""

from __future__ import annotations

import re

from stillhouse.core.results import Gain
from stillhouse.report import tickets, transfer

from . import others


def shades(svg: str) -> list[float]:
    """How strong each cell is filled, row by row."""
    return [float(alpha) for alpha in re.findall(r"fill: \S+?; opacity: (-?[\d.]+)", svg)]


def test_what_is_left_of_a_kind_of_layer_is_the_mean_of_its_layers() -> None:
    """Drawn at the same heights as one layer that has that mean itself."""
    record = others.tickets()

    def drawn(shares: dict[str, list[float]]) -> str:
        (figure,) = tickets._densities(record.model_copy(update={"densities": shares}))
        return str(figure.svg)

    names = ("layer.0.query.weight", "layer.1.query.weight")
    apart = drawn(dict(zip(names, ([0.9, 0.8, 0.5], [0.7, 0.4, 0.1]), strict=True)))
    alike = drawn({name: [0.8, 0.6, 0.3] for name in names})
    assert "query 30.0\u2009%" in apart
    assert apart == alike


def test_a_transfer_is_shaded_where_it_loses_and_not_where_it_gains() -> None:
    names, gains = ["one", "two"], {("one", "two"): -0.04, ("two", "one"): 0.08}
    cells = [
        each.model_copy(update={"source": s, "target": t, "gain": gain})
        for each, (s, t, gain) in zip(
            others.transfer().cells,
            [
                (s, t, None if s == t else Gain(value=gains[s, t], interval=(-1, 1), p_value=0.5))
                for s in names
                for t in names
            ],
            strict=False,
        )
    ]
    changes = {"names": names, "cells": cells, "overlaps": [[1.0, 0.5], [0.5, 1.0]]}
    gain, overlap = transfer.build(others.transfer().model_copy(update=changes)).figures
    most = transfer.STRONGEST
    assert shades(str(gain.svg)) == [0, most, 0, 0]
    assert shades(str(overlap.svg)) == [most, most / 2, most / 2, most]
