"""Several teachers as one: means of distributions, one a batch, and how far they agree.

Axes: N rows, K choices, S teachers, H hidden.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from torch import Tensor

import tiny
from stillhouse.core.errors import ModelError, RunError, UsageError
from stillhouse.core.head import Factored, Head
from stillhouse.core.types import Batch, Dense, Labels, Sparse, Unscored
from stillhouse.signals import ensemble
from stillhouse.signals.ensemble import Mean, OneAtRandom, agreement, mixture


def drawn(seed: int, rows: int = 7, choices: int = 5) -> Tensor:
    return 2 * torch.randn(rows, choices, generator=torch.Generator().manual_seed(seed))


def whole(rows: int = 7) -> Batch:
    return Batch({}, np.arange(rows))


class Given:
    """A source that answers every batch with one signal."""

    fingerprint = "given"

    def __init__(self, signal: Dense | Unscored | Sparse | Labels) -> None:
        self._signal = signal
        self.kind = Dense if isinstance(signal, Unscored) else type(signal)

    def signal(self, batch: Batch) -> Dense | Unscored | Sparse | Labels:
        return self._signal


def test_a_mean_by_hand() -> None:
    """(1/4, 3/4) once and (1/2, 1/2) three times."""
    scores = [torch.tensor([[0.0, math.log(3)]]), torch.tensor([[2.0, 2.0]])]
    found_NK = Mean([tiny.Fixed(z) for z in scores], [1, 3]).signal(whole(1)).scores_NK
    torch.testing.assert_close(found_NK.exp(), torch.tensor([[7 / 16, 9 / 16]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_mean_softened_is_the_mean_of_the_softened(temperature: float) -> None:
    scores, weights = [drawn(s) for s in range(3)], [0.2, 0.5, 0.3]
    mean = Mean([tiny.Fixed(z) for z in scores], weights, temperature=temperature)
    found_NK = softmax(mean.signal(whole()).scores_NK.double().numpy() / temperature, -1)
    expected_NK = sum(
        w * softmax(z.double().numpy() / temperature, -1)
        for w, z in zip(weights, scores, strict=True)
    )
    np.testing.assert_allclose(found_NK, expected_NK, atol=1e-6)
    of_scores_NK = sum(w * z.double().numpy() for w, z in zip(weights, scores, strict=True))
    assert np.abs(found_NK - softmax(of_scores_NK / temperature, -1)).max() > 0.01


def test_a_mean_of_one_is_that_one() -> None:
    found_NK = Mean([tiny.Fixed(drawn(1))], temperature=2.0).signal(whole()).scores_NK
    torch.testing.assert_close(found_NK.softmax(-1), drawn(1).softmax(-1))


def test_a_mean_of_unlikely_choices_keeps_its_digits() -> None:
    """Probabilities of e^-200 and e^-300, which are 0 in float32."""
    scores = [torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -300.0]])]
    found_NK = Mean([tiny.Fixed(z) for z in scores]).signal(whole(1)).scores_NK
    torch.testing.assert_close(found_NK, torch.tensor([[0.0, -200 - math.log(2)]]))


def test_values_of_a_regression_are_averaged() -> None:
    found_NK = Mean(
        [tiny.Fixed(torch.tensor([[1.0]])), tiny.Fixed(torch.tensor([[5.0]]))], [3, 1]
    ).signal(whole(1))
    torch.testing.assert_close(found_NK.scores_NK, torch.tensor([[2.0]]))


def test_a_row_is_the_mean_of_those_who_speak_on_it() -> None:
    one, other = drawn(1), drawn(2)
    speaks = torch.tensor([True, True, False, False, True, True, True])
    also = torch.tensor([True, False, True, False, True, True, True])
    found = Mean(
        [Given(Dense(one, taught_N=speaks)), Given(Dense(other, taught_N=also))], [1, 3]
    ).signal(whole())
    assert found.taught_N is not None
    assert found.taught_N.tolist() == [True, True, True, False, True, True, True]
    p_NK = found.scores_NK.softmax(-1)
    torch.testing.assert_close(p_NK[1], one[1].softmax(-1))
    torch.testing.assert_close(p_NK[2], other[2].softmax(-1))
    both_K = 0.25 * one[0].softmax(-1) + 0.75 * other[0].softmax(-1)
    torch.testing.assert_close(p_NK[0], both_K)


def test_scores_that_are_not_multiplied_out_have_the_same_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = [Head(drawn(s, 5, 4), drawn(s + 9, 1, 5)[0], softcap=3.0) for s in (1, 2)]
    hidden_NH = drawn(3, 7, 4)
    lazy = [Given(Unscored(Factored(hidden_NH, head))) for head in heads]
    dense = [Given(Dense(head(hidden_NH))) for head in heads]
    expected_NK = Mean(dense).signal(whole()).scores_NK
    for rows in (512, 3):
        monkeypatch.setattr(ensemble, "ROWS", rows)
        torch.testing.assert_close(Mean(lazy).signal(whole()).scores_NK, expected_NK)


def test_no_teacher_gets_a_gradient() -> None:
    weight = drawn(1).requires_grad_()

    class Learning(tiny.Fixed):
        def signal(self, batch: Batch) -> Dense:
            return Dense(weight * 2)

    sources = [Learning(drawn(1)), Learning(drawn(1))]
    for made in (Mean(sources), OneAtRandom(sources, seed=0)):
        found = made.signal(whole())
        assert isinstance(found, Dense)
        assert not found.scores_NK.requires_grad
    assert not Mean([Given(Dense(weight))]).signal(whole()).scores_NK.requires_grad


def test_teachers_that_do_not_fit_are_refused_in_one_line() -> None:
    one, wide, long = (tiny.Fixed(drawn(1)), tiny.Fixed(drawn(1, 7, 6)), Given(Dense(drawn(1, 9))))
    labels = Given(Labels(torch.zeros(7, dtype=torch.long)))
    for sources, message in (
        ([one, wide], r"score \[5, 6\] choices"),
        ([one, long], r"scored \[7, 9\] rows"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            Mean(sources).signal(whole())
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="Dense, Labels"):
        Mean([one, labels])
    with pytest.raises(ModelError, match="scores of all choices"):
        Mean([labels])
    with pytest.raises(UsageError, match="there is none"):
        Mean([])
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(UsageError, match="weight"):
            Mean([one, one], weights)
    with pytest.raises(UsageError, match="temperature"):
        Mean([one], temperature=0.0)
    broken = Head(drawn(1, 5, 4), torch.tensor([0, 0, -math.inf, 0, 0]))
    with pytest.raises(RunError, match="not finite") as caught:
        Mean([one, Given(Unscored(Factored(drawn(3, 7, 4), broken)))]).signal(whole())
    assert "\n" not in str(caught.value)


def test_a_mixture_takes_its_weights_row_by_row() -> None:
    scores = [drawn(1), drawn(2)]
    weights_SN = torch.rand(2, 7, generator=torch.Generator().manual_seed(0))
    found_NK = mixture(scores, weights_SN).exp()
    for n in range(7):
        parts = [w * z[n].softmax(-1) for w, z in zip(weights_SN[:, n], scores, strict=True)]
        torch.testing.assert_close(found_NK[n], sum(parts) / weights_SN[:, n].sum())


def test_one_teacher_answers_a_batch() -> None:
    teachers = [tiny.Fixed(drawn(s, 1000)) for s in range(3)]
    source = OneAtRandom(teachers, [1, 1, 2], seed=3)
    batches = [Batch({}, np.arange(2 * i, 2 * i + 2)) for i in range(500)]
    counts = np.zeros(3)
    for batch in batches:
        found = source.signal(batch)
        assert isinstance(found, Dense)
        asked = [torch.equal(found.scores_NK, t.signal(batch).scores_NK) for t in teachers]
        assert sum(asked) == 1
        counts += asked
    np.testing.assert_allclose(counts / 500, [0.25, 0.25, 0.5], atol=4 * 0.0224)
    again = OneAtRandom(teachers, [1, 1, 2], seed=3)  # a run that goes on
    assert [again.drawn(b) for b in reversed(batches)] == [source.drawn(b) for b in batches[::-1]]
    other = OneAtRandom(teachers, [1, 1, 2], seed=4)
    assert [other.drawn(b) for b in batches] != [source.drawn(b) for b in batches]


def test_agreement_by_hand() -> None:
    """Certain of different choices: JSD log 2; then the same half and half: 0."""
    one = Dense(torch.tensor([[40.0, 0.0], [1.0, 1.1]]))
    other = Dense(torch.tensor([[0.0, 40.0], [1.0, 1.1]]))
    found = agreement([{"a": one, "b": other}])
    assert found["rows"] == 2
    assert found["pairs"] == [
        {
            "teachers": ["a", "b"],
            "same_choice": 0.5,
            "jsd": pytest.approx(math.log(2) / 2, rel=1e-5),
        }
    ]
    assert found["disagreement"] == pytest.approx(math.log(2) / 2, rel=1e-5)
    alike = agreement([{"a": one, "b": one, "c": one}])
    assert [pair["same_choice"] for pair in alike["pairs"]] == [1.0] * 3
    assert [pair["jsd"] for pair in alike["pairs"]] == [0.0] * 3
    assert alike["disagreement"] == pytest.approx(0, abs=1e-12)


def test_agreement_against_scipy_over_batches_of_different_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ensemble, "ROWS", 4)
    scores = {name: drawn(s, 11).double() for s, name in enumerate("abc")}
    parts = (slice(0, 2), slice(2, 11))
    found = agreement({n: Dense(z[part]) for n, z in scores.items()} for part in parts)
    assert found["rows"] == 11
    p = {name: softmax(z.numpy(), -1) for name, z in scores.items()}
    for pair in found["pairs"]:
        one, other = pair["teachers"]
        distances = [jensenshannon(a, b) for a, b in zip(p[one], p[other], strict=True)]
        assert pair["jsd"] == pytest.approx(np.square(distances).mean())
        same = (p[one].argmax(-1) == p[other].argmax(-1)).mean()
        assert pair["same_choice"] == pytest.approx(same)
    mean_NK = np.mean([*p.values()], 0)
    entropies = [-(q * np.log(q)).sum(-1) for q in (mean_NK, *p.values())]
    expected = (entropies[0] - np.mean(entropies[1:], 0)).mean()
    assert found["disagreement"] == pytest.approx(expected)
    two = agreement([{"a": Dense(scores["a"]), "b": Dense(scores["b"])}])
    assert two["disagreement"] == pytest.approx(two["pairs"][0]["jsd"], rel=1e-6)


def test_agreement_is_of_rows_that_all_speak_on() -> None:
    one, other = drawn(1), drawn(2)
    speaks = torch.tensor([True, False] * 3 + [True])
    partly = agreement([{"a": Dense(one, taught_N=speaks), "b": Dense(other)}])
    cut = agreement([{"a": Dense(one[speaks]), "b": Dense(other[speaks])}])
    assert partly == cut
    assert partly["rows"] == 4
    with pytest.raises(RunError, match="nothing to compare"):
        agreement([{"a": Dense(one, taught_N=~speaks), "b": Dense(other, taught_N=speaks)}])


def test_fingerprints_tell_ensembles_apart() -> None:
    one = tiny.Fixed(drawn(1))
    made = [
        Mean([one, one]),
        Mean([one, one], [1, 2]),
        Mean([one, one], temperature=2.0),
        Mean([one]),
        OneAtRandom([one, one], seed=0),
        OneAtRandom([one, one], seed=1),
    ]
    assert len({source.fingerprint for source in made}) == len(made)
    assert Mean([one, one], [2, 2]).fingerprint == made[0].fingerprint
