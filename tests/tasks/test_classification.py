"""Classification: labels by name, metrics by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from stillhouse.core.errors import DataError
from stillhouse.tasks.classification import Classification, match_labels


def test_gold_follows_the_order_of_the_choices() -> None:
    task = Classification(["b", "a"])
    gold_N = task.gold(np.array(["a", None, "b"], dtype=object))
    assert gold_N.tolist() == [1, -100, 0]
    assert task.has_gold(gold_N).tolist() == [True, False, True]


def test_predictions_are_the_best_choice_and_its_probabilities() -> None:
    task = Classification(["a", "b"])
    scores_NK = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]], np.float32)
    found = task.predictions(scores_NK, tiny.answered(torch.tensor([1, 0])))
    assert found.answers_N.tolist() == [1, 0]
    np.testing.assert_allclose(found.probabilities_NK, [[0.25, 0.75], [1.0, 0.0]], atol=1e-6)
    assert task.score(found)["accuracy"] == 1.0
    assert set(task.score(found)) == {"accuracy", "macro_f1", "matthews"}
    assert task.agreement(np.array([1, 0, 1]), np.array([1, 1, 1])) == pytest.approx(2 / 3)
    assert task.show(1.0) == "b"


@pytest.mark.parametrize(
    ("teacher", "data", "renames", "matched"),
    [
        (["pos", "neg"], {"neg", "pos"}, {}, ["pos", "neg"]),
        (["POS", "Neg"], {"neg", "pos"}, {}, ["pos", "neg"]),
        (["LABEL_0", "LABEL_1"], {"neg"}, {"LABEL_0": "neg"}, ["neg", "LABEL_1"]),
        (["a", "b", "c"], {"b"}, {}, ["a", "b", "c"]),
        (["caf\u00e9", "th\u00e9"], {"cafe\u0301", "the\u0301"}, {}, ["cafe\u0301", "the\u0301"]),
        (["0.0", "1.0"], {"0", "1"}, {}, ["0", "1"]),
        (["Yes", "yes"], {"yes"}, {}, ["Yes", "yes"]),
    ],
)
def test_labels_are_matched_by_name(
    teacher: list[str], data: set[str], renames: dict[str, str], matched: list[str]
) -> None:
    assert match_labels(teacher, data, renames) == matched


@pytest.mark.parametrize(
    ("teacher", "data", "renames", "says"),
    [
        (
            ["LABEL_0", "LABEL_1"],
            {"neg", "pos"},
            {},
            "doesn't know: neg, pos; .*--label-map LABEL_0=",
        ),
        (["a", "b"], {"a"}, {"c": "a"}, "names c, which the teacher has not; it has a, b"),
        (["a", "b"], {"x"}, {"a": "x", "b": "x"}, "come to the same name: x, x"),
        (["Yes", "yes"], {"YES"}, {}, "come to the same name"),
    ],
)
def test_labels_that_do_not_match_stop_in_one_line(
    teacher: list[str], data: set[str], renames: dict[str, str], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        match_labels(teacher, data, renames)
    assert "\n" not in str(caught.value)
