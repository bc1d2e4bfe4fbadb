import json
from pathlib import Path

import pytest

from stillhouse.core.errors import UsageError
from stillhouse.report import metrics
from stillhouse.report.metrics import Line


def test_mean_is_over_the_steps_all_seeds_have() -> None:
    series = metrics.by_seed("student", [(0, 1, 1.0), (0, 2, 5.0), (1, 1, 3.0)])
    assert series is not None
    assert series.mean == Line([1], [2.0])
    assert series.seeds == [Line([1, 2], [1.0, 5.0]), Line([1], [3.0])]


def test_repeated_step_of_a_resumed_run_counts_once() -> None:
    series = metrics.by_seed("student", [(0, 1, 1.0), (0, 2, 9.0), (0, 2, 2.0)])
    assert series is not None
    assert series.mean == Line([1, 2], [1.0, 2.0])


def test_values_that_are_not_finite_are_not_drawn() -> None:
    assert metrics.by_seed("student", [(0, 1, float("nan")), (0, 2, None)]) is None


def test_thin_takes_means_of_neighbours() -> None:
    line = metrics.thin(Line([1, 2, 3, 4, 5], [1.0, 3.0, 5.0, 7.0, 9.0]), limit=3)
    assert line == Line([2, 4, 5], [2.0, 6.0, 9.0])


def test_held_out_split_is_preferred(tmp_path: Path) -> None:
    rows = [
        {"run": "student", "seed": 0, "step": 1, "event": "evaluate", "split": split, "score": s}
        for split, s in (("train", 1.0), ("held-out", 0.5))
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (series,) = metrics.score_series(metrics.read(path), ("student", "baseline"))
    assert series.mean.values == [0.5]


@pytest.mark.parametrize("line", ["{", "[]", '{"run": "student"}', '{"seed": 0, "step": 1}'])
def test_unreadable_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"run": "student", "seed": 0, "step": 1, "loss": 0.5}\n' + line + "\n")
    with pytest.raises(UsageError, match="line 2: not a step"):
        metrics.read(path)
