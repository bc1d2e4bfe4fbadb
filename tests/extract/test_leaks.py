"""What is given away without a thief: digits, hidden sizes, frozen encoders. Seen, and not seen
where it isn't there."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.extract.answers import Answers
from stillhouse.extract.leaks import digits, frozen_encoder, hidden_size
from stillhouse.extract.views import View


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def shown(logits: np.ndarray, view: str = "probabilities") -> Answers:
    names = [f"c{i}" for i in range(logits.shape[1])]
    return Answers(names, softmax(logits.astype(np.float64))).seen(View.read(view))


@pytest.mark.parametrize("spread", [0.5, 5.0, 10.0])
def test_more_choices_than_hidden_units_give_the_hidden_size_away(spread: float) -> None:
    logits = rng().normal(size=(200, 24)) @ rng(1).normal(size=(24, 150))
    found = hidden_size(shown(spread * logits / logits.std()))
    assert found.leaks
    assert "about 24" in found.finding


def test_float32_noise_does_not_hide_it() -> None:
    logits = (rng().normal(size=(300, 32)) @ rng(1).normal(size=(32, 200))).astype(np.float32)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    answers = Answers([str(i) for i in range(200)], shares / shares.sum(-1, keepdims=True))
    assert "about 32" in hidden_size(answers).finding


@pytest.mark.parametrize("view", ["top:1", "top:5", "probabilities:2", "probabilities:4"])
def test_a_rank_that_the_view_makes_is_not_the_models(view: str) -> None:
    for hidden, choices in ((600, 150), (4, 5), (24, 150)):
        logits = rng().normal(size=(400, hidden)) @ rng(1).normal(size=(hidden, choices))
        found = hidden_size(shown(logits / logits.std(), view))
        assert not found.leaks
        assert "tells nothing" in found.finding
        hidden_some = view.startswith("top") and choices > int(view[4:])
        assert ("only some of the choices" in found.finding) == hidden_some


def test_few_choices_give_nothing_away() -> None:
    few = rng().normal(size=(500, 24)) @ rng(1).normal(size=(24, 3))
    assert not hidden_size(shown(few)).leaks
    assert not hidden_size(shown(np.tile([1.0, 2.0, 3.0], (50, 1)))).leaks
    assert "fewer than the 200" in hidden_size(shown(rng().normal(size=(50, 200)))).finding
    wide = rng().normal(size=(500, 300)) @ rng(1).normal(size=(300, 100))
    assert "fill all 100 choices" in hidden_size(shown(wide / 20)).finding
    assert "1 outputs" in hidden_size(Answers([], values_N=np.ones(9))).finding


def test_digits_beyond_need_are_told() -> None:
    shares = softmax(rng().normal(size=(200, 2)))
    whole = Answers(["a", "b"], shares)
    found = digits(whole)
    assert found.leaks
    assert "all their digits; 2 keep" in found.finding or "3 keep" in found.finding
    two = whole.seen(View.read("probabilities:2"))
    assert not digits(two).leaks


def test_a_label_that_rounding_would_change_needs_its_digits() -> None:
    close = Answers(["a", "b"], np.array([[0.50004, 0.49996], [1 / 3, 2 / 3]]))
    assert "; 5 keep" in digits(close).finding
    tied = Answers(["a", "b"], np.array([[0.5, 0.5], [1 / 3, 2 / 3]]))
    assert "; 2 keep" in digits(tied).finding


@pytest.mark.parametrize("choices", [1, 3])
def test_a_head_on_a_frozen_encoder_is_found(choices: int) -> None:
    features = rng().normal(size=(400, 30))
    logits = features @ rng(1).normal(size=(30, choices)) + rng(2).normal(size=choices)
    answers = (
        Answers([], values_N=logits[:, 0])
        if choices == 1
        else Answers(["a", "b", "c"], softmax(0.3 * logits))
    )
    public = {"the first token": rng(3).normal(size=(400, 30)), "its pooler": features}
    found = frozen_encoder(answers, public, "public", rng(4))
    assert found.leaks
    assert "60 queries" in found.finding
    assert "its pooler" in found.finding


def test_a_tuned_encoder_is_not() -> None:
    features = rng().normal(size=(400, 30))
    logits = np.tanh(features @ rng(1).normal(size=(30, 30))) @ rng(2).normal(size=(30, 2))
    answers = Answers(["a", "b"], softmax(logits))
    assert not frozen_encoder(answers, {"its pooler": features}, "public", rng(3)).leaks


@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_a_frozen_encoder_is_found_however_sure_its_head_is(spread: float) -> None:
    features = rng().normal(size=(400, 30))
    logits = features @ rng(1).normal(size=(30, 3))
    answers = shown(spread * logits / logits.std())
    assert frozen_encoder(answers, {"its pooler": features}, "public", rng(2)).leaks


def test_a_head_is_judged_by_answers_that_it_was_not_fitted_to() -> None:
    features = rng().normal(size=(80, 30))
    found = frozen_encoder(shown(rng(1).normal(size=(80, 2))), {"pooler": features}, "x", rng(2))
    assert not found.leaks
    assert "explains the answers (0% of" in found.finding


def test_too_few_answers_are_not_an_all_clear() -> None:
    features = rng().normal(size=(74, 30))
    answers = shown(features @ rng(1).normal(size=(30, 3)))
    found = frozen_encoder(answers, {"its pooler": features}, "public", rng(2))
    assert not found.leaks
    assert "too few to tell" in found.finding
    assert "75 would be enough" in found.finding
    rounded = frozen_encoder(
        answers.seen(View.read("probabilities:3")), {"x": features}, "p", rng()
    )
    assert "can't be told" in rounded.finding
