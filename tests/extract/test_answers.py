"""What an API shows, narrowed, and what a thief makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.types import Batch, Dense, Labels
from stillhouse.extract.answers import Answers, Told, from_json
from stillhouse.extract.views import View

WHOLE = Answers(["a", "b", "c"], np.array([[0.7123, 0.2, 0.0877], [0.1, 0.1, 0.8]]))


@pytest.mark.parametrize(
    "name", ["probabilities", "probabilities:3", "top:2", "top:2:1", "label", "value:1", "text"]
)
def test_views_are_read_by_their_names(name: str) -> None:
    assert View.read(name).name == name


@pytest.mark.parametrize(
    "name", ["probs", "label:2", "top", "top:0", "top:a", "top:1:2:3", "text:1"]
)
def test_a_view_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="view"):
        View.read(name)


def test_rounding_top_and_label() -> None:
    assert WHOLE.seen(View.read("probabilities:1")).probabilities_NK.tolist() == [
        [0.7, 0.2, 0.1], [0.1, 0.1, 0.8],
    ]  # fmt: skip
    top = WHOLE.seen(View.read("top:1:2"))
    np.testing.assert_array_equal(
        top.probabilities_NK, [[0.71, np.nan, np.nan], [np.nan, np.nan, 0.8]]
    )
    assert WHOLE.seen(View.read("label")).labels_N.tolist() == [0, 2]
    assert WHOLE.seen(View.read("label")).probabilities_NK is None
    assert top.seen(View.read("label")).labels_N.tolist() == [0, 2]
    assert len(WHOLE.first(1)) == 1


def test_what_a_victim_does_not_show_can_not_be_seen() -> None:
    with pytest.raises(DataError, match="shows no text"):
        WHOLE.seen(View.read("text"))
    with pytest.raises(DataError, match="shows no probabilities"):
        WHOLE.seen(View.read("label")).seen(View.read("probabilities"))


def test_values_are_rounded() -> None:
    values = Answers([], values_N=np.array([1.234, 5.0]))
    seen = values.seen(View.read("value:1"))
    np.testing.assert_allclose(seen.values_N, [1.2, 5.0])
    np.testing.assert_allclose(seen.scores(), [[1.2], [5.0]], rtol=1e-6)


def test_whole_probabilities_come_back_as_they_are() -> None:
    np.testing.assert_allclose(np.exp(WHOLE.scores()), WHOLE.probabilities_NK, rtol=1e-5)


def test_what_is_hidden_is_shared_evenly() -> None:
    found = np.exp(WHOLE.seen(View.read("top:1")).scores())
    np.testing.assert_allclose(found, [[0.7123, 0.14385, 0.14385], [0.1, 0.1, 0.8]], rtol=1e-5)


def test_a_share_rounded_to_nothing_is_small_and_finite() -> None:
    sure = Answers(["a", "b"], np.array([[0.9999, 0.0001]])).seen(View.read("probabilities:2"))
    scores = sure.scores()
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(np.exp(scores[0, 1]), 0.0025, rtol=0.01)


@pytest.mark.parametrize("view", ["probabilities", "label"])
def test_a_source_answers_by_position(view: str) -> None:
    told = Told(WHOLE.seen(View.read(view)), "f")
    signal = told.signal(Batch({}, np.array([1, 0, 1])))
    if view == "label":
        assert isinstance(signal, Labels)
        assert signal.labels_N.tolist() == [2, 0, 2]
    else:
        assert isinstance(signal, Dense)
        assert signal.scores_NK.argmax(-1).tolist() == [2, 0, 2]


def test_labels_among_probabilities_are_sure() -> None:
    found = from_json(
        [{"label": "b", "probabilities": {"a": 0.25, "b": 0.75}}, {"label": "a"}, {"label": "c"}]
    )
    assert found.choices == ["a", "b", "c"]
    scores_NK = found.scores()
    np.testing.assert_allclose(np.exp(scores_NK[0, :2]), [0.25, 0.75], atol=1e-5)
    assert np.exp(scores_NK[1:]).max(1) == pytest.approx([1, 1], abs=1e-5)
    assert found.seen(View.read("label")).labels_N.tolist() == [1, 0, 2]  # pyright: ignore[reportOptionalMemberAccess]


def test_answers_of_an_api_are_put_in_one_order() -> None:
    found = from_json([{"probabilities": {"no": 0.4, "yes": 0.6}},
                       {"probabilities": {"yes": 0.1, "no": 0.9}}])  # fmt: skip
    assert found.choices == ["no", "yes"]
    assert found.probabilities_NK.tolist() == [[0.4, 0.6], [0.9, 0.1]]
    known = from_json([{"label": "b"}, {"label": "a"}], ["b", "a", "c"])
    assert known.choices == ["b", "a", "c"]
    assert known.labels_N.tolist() == [0, 1]
    top = from_json([{"probabilities": {"x": 0.5}}, {"probabilities": {"y": 0.6}}])
    assert np.isnan(top.probabilities_NK).tolist() == [[False, True], [True, False]]
    assert from_json([{"value": 2.0}]).values_N.tolist() == [2.0]
    assert from_json([{"text": "so"}]).texts == ["so"]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([{"label": "a"}, {"value": 1.0}], "what others lack"),
        ([{"probabilities": {"a": 0.5, "b": 0.5}}, {"probabilities": {"a": 0.5, "c": 0.5}}],
         "labels change between calls"),
        ([{"probabilities": {"a": 50.0, "b": 50.0}}], "logits or percentages"),
        ([{"probabilities": {"a": -1.5, "b": 0.5}}], "logits or percentages"),
    ],
)  # fmt: skip
def test_answers_that_can_not_be_one_models_are_refused(
    found: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        from_json(found)
    assert "\n" not in str(caught.value)
