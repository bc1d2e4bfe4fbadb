"""Where int8 gains nothing, the report says so."""

from __future__ import annotations

import pytest

from stillhouse.core.results import ExportResult
from stillhouse.flows.proof import int8_gains_nothing, int8_is_worse


def made(
    name: str, latency_ms: float | None = None, per_s: float | None = None, score: float = 0.9
) -> ExportResult:
    return ExportResult(
        format=name,
        path=f"onnx/{name}",
        bytes=1,
        latency_ms=latency_ms,
        latency_p95_ms=latency_ms,
        throughput_per_s=per_s,
        score=score,
        agreement=0.875,
        max_difference=0.0,
    )


@pytest.mark.parametrize(
    ("ms", "per_s", "told"),
    [
        (2.2, 400.0, True),
        (1.99, 419.0, True),
        (1.5, 400.0, False),  # faster at one row
        (2.2, 500.0, False),  # faster at many
        (None, None, False),
    ],
)
def test_said_where_it_was_measured(ms, per_s, told):
    exports = [made("onnx", 2.0, 400.0), made("onnx-int8", ms, per_s)]
    found = int8_gains_nothing(exports, instructions=True)
    assert bool(found) == told
    if told:
        assert f"{ms:.2f} ms a row, and the float32 file 2.00" in found[0]
        assert "VNNI" not in found[0]


def test_the_reason_is_named():
    exports = [made("onnx", 2.0, 400.0), made("onnx-int8", 2.1, 390.0)]
    (found,) = int8_gains_nothing(exports, instructions=False)
    assert "no instructions for it (VNNI)" in found


def test_one_file_alone_is_compared_with_nothing():
    assert int8_gains_nothing([made("onnx", 2.0, 400.0)], instructions=False) == []


@pytest.mark.parametrize(
    ("metric", "score", "margin", "lost"),
    [
        ("accuracy", 0.8, None, "10.0 points"),
        ("accuracy", 0.891, None, None),  # inside the margin of one point
        ("accuracy", 0.891, 0.5, "0.9 points"),
        ("accuracy", 0.95, None, None),
        ("pearson", 0.85, None, "5.0 points"),
    ],
)
def test_an_int8_file_that_is_worse_is_said(metric, score, margin, lost):
    exports = [made("onnx"), made("onnx-int8", score=score)]
    found = int8_is_worse(exports, metric, margin)
    if lost is None:
        assert found == []
        return
    assert found == [
        f"the int8 file scores {score:.3f} in {metric}, {lost} less than the float32 file (0.900), "
        "and gives the student's answer to 87.5 % of the rows: take onnx/onnx"
    ]


def test_an_int8_file_alone_is_worse_than_nothing():
    assert int8_is_worse([made("onnx-int8", score=0.1)], "accuracy") == []
