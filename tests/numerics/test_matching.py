# B examples, T tokens, H and G widths, A heads, R relation heads, D width of a head, L layers.

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stillhouse.numerics import matching
from stillhouse.numerics.matching import (
    attention_kl,
    attention_mse,
    cosine,
    gram_mse,
    hidden_mse,
    hint,
    patience,
    relation_kl,
    split_heads,
)

LN2, LN3 = math.log(2), math.log(3)
B, T, LENGTHS = 4, 5, (5, 2, 4, 1)
MASK_BT = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
ALL_BT = torch.ones(B, T, dtype=torch.bool)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gram(student: Tensor, teacher: Tensor, mask_BT: Tensor | None) -> Tensor:
    """gram_mse with both layers of a side in one tensor, to be handled like the others."""
    return gram_mse(*student.chunk(2, -1), *teacher.chunk(2, -1), mask_BT)


# --- slow references, in plain Python, over real tokens alone ---------------------------------


def squared(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def softmax(x: list[float]) -> list[float]:
    weights = [math.exp(a - max(x)) for a in x]
    return [w / sum(weights) for w in weights]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def hint_loop(s: list, t: list) -> float:
    return mean([0.5 * squared(x, y) for x, y in zip(s, t, strict=True)])


def hidden_loop(s: list, t: list) -> float:
    return mean(
        [mean([(a - b) ** 2 for a, b in zip(*xy, strict=True)]) for xy in zip(s, t, strict=True)]
    )


def cosine_loop(s: list, t: list) -> float:
    pairs = zip(s, t, strict=True)
    return mean([1 - dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)) for x, y in pairs])


def gram_loop(s: list, t: list) -> float:
    def similarity(x: list, i: int, j: int) -> float:
        width = len(x[0]) // 2
        return dot(x[i][:width], x[j][width:]) / width

    places = range(len(s))
    return mean([(similarity(s, i, j) - similarity(t, i, j)) ** 2 for i in places for j in places])


def attention_mse_loop(s: list, t: list) -> float:
    heads = zip(s, t, strict=True)
    return mean(
        [mean([hidden_loop([x], [y]) for x, y in zip(*head, strict=True)]) for head in heads]
    )


def attention_kl_loop(s: list, t: list) -> float:
    heads = zip(s, t, strict=True)
    return mean(
        [mean([kl(softmax(y), softmax(x)) for x, y in zip(*head, strict=True)]) for head in heads]
    )


def relation_kl_loop(s: list, t: list) -> float:
    def scores(heads: list) -> list:
        return [[[dot(x, y) / math.sqrt(len(x)) for y in head] for x in head] for head in heads]

    return attention_kl_loop(scores(s), scores(t))


class Case(NamedTuple):
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    loop: Callable[[list, list], float]
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    axes: tuple[int, ...]  # which of them are tokens

    def pair(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        return normal(seed, *self.student), normal(seed + 1, *self.teacher)


STATES = (B, T, 6), (B, T, 6), (1,)
SCORES = (B, 3, T, T), (B, 3, T, T), (2, 3)
CASES = {
    "hint": Case(hint, hint_loop, *STATES),
    "hint reference": Case(
        partial(hint, variant="reference"), lambda s, t: hint_loop(s, t) / 6, *STATES
    ),
    "hidden_mse": Case(hidden_mse, hidden_loop, *STATES),
    "cosine": Case(cosine, cosine_loop, *STATES),
    "gram_mse": Case(gram, gram_loop, (B, T, 6), (B, T, 10), (1,)),
    "attention_mse": Case(attention_mse, attention_mse_loop, *SCORES),
    "attention_kl": Case(attention_kl, attention_kl_loop, *SCORES),
    "relation_kl": Case(relation_kl, relation_kl_loop, (B, 3, T, 2), (B, 3, T, 4), (2,)),
}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def gradient(loss, student: Tensor, teacher: Tensor, mask_BT: Tensor | None) -> Tensor:
    student = student.clone().requires_grad_()
    value_B = loss(student, teacher, mask_BT)
    # examples weighted unequally: each must get its own share
    (value_B * torch.arange(1, len(value_B) + 1)).sum().backward()
    assert student.grad is not None
    return student.grad


def spread(x: Tensor, places: Tensor, longer: int, axes: tuple[int, ...], junk: float) -> Tensor:
    """The same tokens at other places of a longer sequence, with junk between them."""
    for axis in axes:
        shape = [*x.shape[:axis], longer, *x.shape[axis + 1 :]]
        x = torch.full(shape, junk, dtype=x.dtype).index_copy(axis, places, x)
    return x


def only(x: Tensor, example: int, axes: tuple[int, ...]) -> Tensor:
    """One example without its padding."""
    x = x[example : example + 1]
    for axis in axes:
        x = x.narrow(axis, 0, LENGTHS[example])
    return x


# --- values worked by hand --------------------------------------------------------------------

# the third token is padding: huge on one side, infinite on the other
TWO_OF_THREE = torch.tensor([[True, True, False]])


def test_hint_by_hand():
    # squared distances 1 + 4 and 9 + 0, halved: 2.5 and 4.5
    student_BTH = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [1e30, 1e30]]])
    teacher_BTH = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [math.inf, 0.0]]])
    assert hint(student_BTH, teacher_BTH, TWO_OF_THREE).item() == pytest.approx(3.5)
    reference_B = hint(student_BTH, teacher_BTH, TWO_OF_THREE, variant="reference")
    assert reference_B.item() == pytest.approx(1.75)


def test_hidden_mse_by_hand():
    # squares 1, 4, 9, 0
    student_BTH = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [1e30, 1e30]]])
    teacher_BTH = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [math.inf, 0.0]]])
    assert hidden_mse(student_BTH, teacher_BTH, TWO_OF_THREE).item() == pytest.approx(3.5)


def test_patience_by_hand():
    # layer 1: (3, 4) / 5 against (0, 1): 0.36 + 0.04; layer 2: (1, 0) against (0, 1): 2
    student_BLH = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    teacher_BLH = torch.tensor([[[0.0, 2.0], [0.0, 1.0]]])
    torch.testing.assert_close(patience(student_BLH, teacher_BLH), torch.tensor([2.4]))
    reference_B = patience(student_BLH, teacher_BLH, variant="reference")
    torch.testing.assert_close(reference_B, torch.tensor([2.4 / 4]))
    # as they are: 9 + 4 and 1 + 1
    raw_B = patience(student_BLH, teacher_BLH, normalise=False)
    torch.testing.assert_close(raw_B, torch.tensor([15.0]))


def test_attention_mse_by_hand():
    # head 1: squares 1, 0, 0, 9; head 2: all 4
    student_BATT = torch.full((1, 2, 3, 3), 1e30)
    student_BATT[0, :, :2, :2] = torch.tensor([[[1.0, 5.0], [6.0, 3.0]], [[2.0] * 2] * 2])
    teacher_BATT = torch.full((1, 2, 3, 3), math.inf)
    teacher_BATT[0, :, :2, :2] = torch.tensor([[[0.0, 5.0], [6.0, 0.0]], [[0.0] * 2] * 2])
    value_B = attention_mse(student_BATT, teacher_BATT, TWO_OF_THREE)
    torch.testing.assert_close(value_B, torch.tensor([(10 + 16) / 8]))


def test_attention_kl_by_hand():
    # query 1: teacher (3/4, 1/4), student (1/2, 1/2); query 2: equal
    student_BATT = torch.tensor([[[[2.0, 2.0, 1e30], [0.0, 1.0, 1e30], [1e30, math.nan, 0.0]]]])
    teacher_BATT = torch.tensor([[[[LN3, 0.0, math.inf], [4.0, 5.0, 0.0], [0.0, 1e30, 0.0]]]])
    value_B = attention_kl(student_BATT, teacher_BATT, TWO_OF_THREE)
    torch.testing.assert_close(value_B, torch.tensor([(0.75 * LN3 - LN2) / 2]))


def test_relation_kl_by_hand():
    # student: all relations 0, uniform. Teacher, width 4: x1 . x1 / 2 = log 3, so its first row is
    # (3/4, 1/4) and its second (1/2, 1/2)
    student_BRTD = torch.tensor([[[[0.0], [0.0], [math.nan]]]])
    teacher_BRTE = torch.zeros(1, 1, 3, 4)
    teacher_BRTE[0, 0, 0, 2] = math.sqrt(2 * LN3)
    teacher_BRTE[0, 0, 2] = math.inf
    value_B = relation_kl(student_BRTD, teacher_BRTE, TWO_OF_THREE)
    torch.testing.assert_close(value_B, torch.tensor([(0.75 * LN3 - LN2) / 2]))


def test_cosine_by_hand():
    # a right angle 1, the same direction 0, the opposite one 2 and again 2
    student_BTH = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [3.0, 0.0]]])
    teacher_BTH = torch.tensor([[[0.0, 2.0], [2.0, 2.0], [-1.0, 0.0], [-1.0, 0.0]]])
    torch.testing.assert_close(cosine(student_BTH, teacher_BTH, None), torch.tensor([1.25]))


def test_gram_mse_by_hand():
    # student, width 1: (1, 2)^T (3, 1) = ((3, 1), (6, 2)); teacher, width 2: ((2, 0), (0, 2)) / 2
    one_BTH, two_BTH = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0], [1.0]]])
    eye_BTG = torch.eye(2).unsqueeze(0)
    value_B = gram_mse(one_BTH, two_BTH, eye_BTG, 2 * eye_BTG, None)
    torch.testing.assert_close(value_B, torch.tensor([(4 + 1 + 36 + 1) / 4]))


def test_split_heads_by_hand():
    # one token of 2 heads of width 3: side by side 0 1 2 3 4 5, cut into 3 heads of width 2
    x_BATD = torch.arange(6.0).view(1, 2, 1, 3)
    assert split_heads(x_BATD, 3).tolist() == [[[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]]]]


# --- against slow references ------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=str
)
def test_agrees_with_a_loop(case, dtype, tolerance):
    student, teacher = (x.to(dtype) for x in case.pair())
    value_B = case.loss(student, teacher, MASK_BT)
    expected_B = [
        case.loop(*(only(x.double(), b, case.axes)[0].tolist() for x in (student, teacher)))
        for b in range(B)
    ]
    assert value_B.dtype == dtype
    expected_B = torch.tensor(expected_B, dtype=dtype)
    torch.testing.assert_close(value_B, expected_B, rtol=tolerance, atol=tolerance)


def test_patience_agrees_with_a_loop():
    student_BLH, teacher_BLH = normal(2, B, 3, 6), normal(3, B, 3, 6)
    expected_B = [
        sum(
            squared([a / math.hypot(*x) for a in x], [b / math.hypot(*y) for b in y])
            for x, y in zip(s, t, strict=True)
        )
        for s, t in zip(student_BLH.tolist(), teacher_BLH.tolist(), strict=True)
    ]
    expected_B = torch.tensor(expected_B, dtype=torch.float64)
    torch.testing.assert_close(patience(student_BLH, teacher_BLH), expected_B)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 12])
def test_split_heads_agrees_with_a_loop(heads):
    x_BATD = normal(4, 2, 3, 5, 4)
    split_BRTE = split_heads(x_BATD, heads)
    width = 12 // heads
    assert split_BRTE.shape == (2, heads, 5, width)
    for b, r, t, e in torch.cartesian_prod(*map(torch.arange, split_BRTE.shape)).tolist():
        at = r * width + e
        assert split_BRTE[b, r, t, e] == x_BATD[b, at // 4, t, at % 4]


def test_split_heads_into_as_many_changes_nothing():
    x_BATD = normal(5, 2, 3, 5, 4)
    assert torch.equal(split_heads(x_BATD, 3), x_BATD)


# --- against torch and other projects ---------------------------------------------------------


def weighted(value_B: Tensor, power: int) -> Tensor:
    """A batch's mean where an example weighs as its number of tokens to a power."""
    weight_B = MASK_BT.sum(-1).double() ** power
    return (weight_B * value_B).sum() / weight_B.sum()


def entropy(scores_BATT: Tensor) -> Tensor:
    """Mean entropy of the rows of real queries."""
    p_BATT = scores_BATT.softmax(-1)
    rows_BAT = torch.special.entr(p_BATT).sum(-1)
    return weighted(
        torch.stack([r[:, m].mean() for r, m in zip(rows_BAT, MASK_BT, strict=True)]), 1
    )


def test_cosine_agrees_with_torch():
    student_BTH, teacher_BTH = CASES["cosine"].pair()
    expected_B = 1 - F.cosine_similarity(student_BTH, teacher_BTH, dim=-1).mean(-1)
    torch.testing.assert_close(cosine(student_BTH, teacher_BTH, None), expected_B)


@pytest.mark.parametrize(
    ("name", "theirs", "power"),
    [
        # all examples in one mean, so that longer ones weigh more: the only difference
        ("hidden_mse", "hid_mse_loss", 1),
        ("cosine", "cos_loss", 1),
        ("attention_mse", "att_mse_loss", 2),
    ],
)
def test_agrees_with_textbrewer(name, theirs, power):
    theirs = getattr(pytest.importorskip("textbrewer.losses"), theirs)
    student, teacher = CASES[name].pair(10)
    loss = CASES[name].loss
    torch.testing.assert_close(
        loss(student, teacher, ALL_BT).mean(), theirs(student, teacher, ALL_BT)
    )
    one_mean = weighted(loss(student, teacher, MASK_BT), power)
    torch.testing.assert_close(one_mean, theirs(student, teacher, MASK_BT))


def test_patience_agrees_with_textbrewer():
    # one layer at a time there
    losses = pytest.importorskip("textbrewer.losses")
    student_BLH, teacher_BLH = normal(12, B, 3, 6), normal(13, B, 3, 6)
    layers = zip(student_BLH.unbind(1), teacher_BLH.unbind(1), strict=True)
    expected = sum(losses.pkd_loss(*layer) for layer in layers)
    torch.testing.assert_close(patience(student_BLH, teacher_BLH).mean(), expected)


def test_attention_kl_agrees_with_textbrewer_less_the_entropy():
    # a cross-entropy there, over keys that the scores must already exclude
    losses = pytest.importorskip("textbrewer.losses")
    excluded_B1TT = ~MASK_BT[:, None, None, :]
    student, teacher = (x.masked_fill(excluded_B1TT, -1e4) for x in CASES["attention_kl"].pair(14))
    student.requires_grad_()
    ours = weighted(attention_kl(student, teacher, MASK_BT), 1)
    theirs = losses.att_ce_loss(student, teacher, MASK_BT)
    torch.testing.assert_close(ours, theirs - entropy(teacher))
    slopes = (torch.autograd.grad(loss, student)[0] for loss in (ours, theirs))
    torch.testing.assert_close(*slopes)


def test_gram_mse_agrees_with_textbrewer():
    losses = pytest.importorskip("textbrewer.losses")
    student, teacher = CASES["gram_mse"].pair(16)
    lists = [list(x.chunk(2, -1)) for x in (student, teacher)]
    torch.testing.assert_close(gram(student, teacher, None).mean(), losses.mmd_loss(*lists))


def test_gram_mse_differs_from_textbrewer_with_a_mask_by_a_factor():
    # given a mask, they divide by the padded length instead of the width
    losses = pytest.importorskip("textbrewer.losses")
    student, teacher = normal(17, B, T, 8), normal(18, B, T, 8)
    theirs = losses.mmd_loss(*(list(x.chunk(2, -1)) for x in (student, teacher)), MASK_BT)
    ours = weighted(gram(student, teacher, MASK_BT), 2)
    torch.testing.assert_close(theirs, ours * (4 / T) ** 2)


def paths(**given: object) -> dict[str, object]:
    """torchdistill's losses look tensors up by module path and direction."""
    sides = {
        f"{side}_module_{key}": value
        for side in ("student", "teacher")
        for key, value in (("path", "x"), ("io", "output"))
    }
    return sides | given


def found(x: object) -> dict[str, dict[str, object]]:
    return {"x": {"output": x}}


def test_agrees_with_torchdistill_on_states():
    # L2 of prime-aware distillation at log variance 0
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student_BTH, teacher_BTH = CASES["hidden_mse"].pair(20)
    loss = losses.PADL2Loss("x", "x", eps=0.0)
    flat = found(student_BTH) | {"var_estimator": {"output": torch.zeros(B, T * 6)}}
    theirs = loss(flat, found(teacher_BTH))
    torch.testing.assert_close(hidden_mse(student_BTH, teacher_BTH, None).mean(), theirs)


def test_agrees_with_torchdistill_on_attention():
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = CASES["attention_mse"].pair(22)
    loss = losses.HierarchicalContextLoss(**paths(), output_sizes=[T])  # the finest level alone
    theirs = loss(found((student, None)), found(teacher))
    torch.testing.assert_close(attention_mse(student, teacher, None).mean(), theirs)
    rows = (found(x.reshape(-1, T)) for x in (student, teacher))
    theirs = losses.KDLoss(**paths(), temperature=1.0, alpha=0.0)(*rows)
    torch.testing.assert_close(attention_kl(student, teacher, None).mean(), theirs)


def test_agrees_with_torchdistill_on_patience():
    # knowledge adaptation of one vector: the distance itself, not squared
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    loss = losses.KTALoss(p=2, knowledge_translator_path="x", feature_adapter_path="x")
    student_BLH, teacher_BLH = normal(24, B, 1, 6), normal(25, B, 1, 6)
    theirs_B = [loss(found(student_BLH[b]), found(teacher_BLH[b])).item() ** 2 for b in range(B)]
    assert patience(student_BLH, teacher_BLH).tolist() == pytest.approx(theirs_B)


def test_agrees_with_torchdistill_on_similarities():
    # their matrix of two feature maps (B x channels x places), with tokens for channels
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = CASES["gram_mse"].pair(26)
    matrices = (
        losses.FSPLoss.compute_fsp_matrix(*(y.unsqueeze(-1) for y in x.chunk(2, -1)))
        for x in (student, teacher)
    )
    torch.testing.assert_close(gram(student, teacher, None).mean(), F.mse_loss(*matrices))


# --- padding ----------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("junk", [0.0, 1e30, math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_changes_nothing(case, junk, dtype):
    student, teacher = (x.to(dtype) for x in case.pair(30))
    value_B = case.loss(student, teacher, MASK_BT)
    slope = gradient(case.loss, student, teacher, MASK_BT)
    for places, longer in ((torch.arange(T), T + 3), (torch.tensor([0, 2, 3, 5, 8]), T + 4)):
        mask_BT = torch.zeros(B, longer, dtype=torch.bool)
        mask_BT[:, places] = MASK_BT
        wide = [spread(x, places, longer, case.axes, junk) for x in (student, teacher)]
        torch.testing.assert_close(case.loss(*wide, mask_BT), value_B)
        wide_slope = gradient(case.loss, *wide, mask_BT)
        expected = spread(slope, places, longer, case.axes, 0.0)
        torch.testing.assert_close(wide_slope, expected)  # 0 in padded places, not NaN


@every_loss
@pytest.mark.parametrize("junk", [1e30, math.inf, math.nan], ids=str)
def test_padding_inside_the_batch_reaches_nothing(case, junk):
    student, teacher = case.pair(32)
    broken = []
    for x in (student, teacher):
        x = x.clone()
        for axis in case.axes:
            shape = [1] * x.dim()
            shape[0], shape[axis] = B, T
            x = torch.where(MASK_BT.view(shape), x, junk)
        broken.append(x)
    assert torch.equal(case.loss(*broken, MASK_BT), case.loss(student, teacher, MASK_BT))
    slope = gradient(case.loss, student, teacher, MASK_BT)
    assert torch.equal(gradient(case.loss, *broken, MASK_BT), slope)
    for b, length in enumerate(LENGTHS):
        for axis in case.axes:
            assert (slope.narrow(0, b, 1).narrow(axis, length, T - length) == 0).all()


@every_loss
def test_an_example_alone_has_the_value_it_has_in_a_batch(case):
    student, teacher = case.pair(34)
    value_B = case.loss(student, teacher, MASK_BT)
    for b in range(B):
        alone = case.loss(*(only(x, b, case.axes) for x in (student, teacher)), None)
        torch.testing.assert_close(alone, value_B[b : b + 1])


@every_loss
def test_no_mask_is_a_mask_of_real_tokens(case):
    pair = case.pair(36)
    torch.testing.assert_close(case.loss(*pair, None), case.loss(*pair, ALL_BT))
    slopes = (gradient(case.loss, *pair, mask) for mask in (None, ALL_BT))
    torch.testing.assert_close(*slopes)


@every_loss
def test_an_example_without_a_real_token_is_zero(case):
    student, teacher = case.pair(38)
    mask_BT = MASK_BT.clone()
    mask_BT[2] = False
    student[2], teacher[2] = math.nan, math.inf
    value_B = case.loss(student, teacher, mask_BT)
    assert value_B[2] == 0
    assert value_B.isfinite().all()
    slope = gradient(case.loss, student, teacher, mask_BT)
    assert (slope[2] == 0).all()
    assert slope.isfinite().all()


# --- identities and limits --------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_equal_inputs_have_value_and_gradient_zero(case, dtype):
    same = (5 * normal(40, *case.student)).to(dtype)
    for mask in (None, MASK_BT):
        assert case.loss(same, same.clone(), mask).tolist() == [0.0] * B
        assert (gradient(case.loss, same, same.clone(), mask) == 0).all()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_equal_states_have_patience_and_gradient_zero(normalise, dtype):
    same_BLH = normal(41, B, 3, 6).to(dtype)

    def loss(student_BLH: Tensor, teacher_BLH: Tensor, _: None) -> Tensor:
        return patience(student_BLH, teacher_BLH, normalise=normalise)

    assert loss(same_BLH, same_BLH, None).tolist() == [0.0] * B
    assert (gradient(loss, same_BLH, same_BLH, None) == 0).all()


@every_loss
@pytest.mark.parametrize("mask_BT", [None, MASK_BT], ids=["all", "masked"])
def test_gradient_is_right(case, mask_BT):
    student, teacher = case.pair(42)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: case.loss(s, teacher, mask_BT), student)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_gradient_of_patience_is_right(normalise, variant):
    student_BLH, teacher_BLH = normal(43, 2, 3, 4).requires_grad_(), normal(44, 2, 3, 4)
    loss = partial(patience, normalise=normalise, variant=variant)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher_BLH), student_BLH)


@every_loss
def test_a_second_derivative_is_refused_not_wrong(case):
    student, teacher = case.pair(45)
    student.requires_grad_()
    value_B = case.loss(student, teacher, MASK_BT)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value_B.sum(), student, create_graph=True)


@every_loss
def test_teacher_gets_no_gradient(case):
    student, teacher = case.pair(46)
    teacher.requires_grad_()
    gradient(case.loss, student, teacher, MASK_BT)
    assert teacher.grad is None
    assert not case.loss(student, teacher, MASK_BT).requires_grad


def test_patience_gives_the_teacher_no_gradient():
    teacher_BLH = normal(47, B, 3, 6).requires_grad_()
    assert not patience(normal(48, B, 3, 6), teacher_BLH).requires_grad


@every_loss
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1e-3, 1.0, 30.0]))
def test_never_negative(case, seed, scale):
    student = normal(seed, *case.student).float()
    teacher = student + scale * normal(seed + 1, *case.student).float()
    for dtype in (torch.float32, torch.bfloat16):
        value_B = case.loss(student.to(dtype), teacher.to(dtype), MASK_BT)
        assert (value_B >= 0).all()  # NaN fails too


def test_relations_do_not_change_under_rotation():
    student, teacher = CASES["relation_kl"].pair(50)
    rotation_EE = torch.linalg.qr(normal(51, 4, 4)).Q
    value_B = relation_kl(student, teacher @ rotation_EE, MASK_BT)
    torch.testing.assert_close(value_B, relation_kl(student, teacher, MASK_BT))


def test_attention_kl_ignores_a_constant_per_query():
    student, teacher = CASES["attention_kl"].pair(52)
    moved = student + normal(53, B, 3, T, 1)
    value_B = attention_kl(moved, teacher, MASK_BT)
    torch.testing.assert_close(value_B, attention_kl(student, teacher, MASK_BT))


def test_cosine_and_patience_ignore_length():
    student, teacher = CASES["cosine"].pair(54)
    longer = student * normal(55, B, T, 1).abs()
    torch.testing.assert_close(cosine(longer, teacher, MASK_BT), cosine(student, teacher, MASK_BT))
    torch.testing.assert_close(patience(longer, teacher), patience(student, teacher))


def test_cosine_is_accurate_near_zero():
    # written as 1 - cos, float32 would leave noise of 1e-7 here, a thousand times the value
    student = normal(56, B, T, 6).float()
    teacher = student + 1e-5 * normal(57, B, T, 6).float()
    exact_B = cosine(student.double(), teacher.double(), None)
    assert exact_B.max() < 1e-9
    torch.testing.assert_close(cosine(student, teacher, None).double(), exact_B, rtol=0.05, atol=0)


def test_a_state_of_zeros_is_finite():
    zeros_BTH = torch.zeros(1, 2, 3)
    states_BTH = torch.ones(1, 2, 3)
    assert cosine(zeros_BTH, states_BTH, None).item() == pytest.approx(0.5)
    assert gradient(cosine, zeros_BTH, states_BTH, None).isfinite().all()
    assert patience(zeros_BTH, zeros_BTH).item() == 0


# --- precision and layout ---------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("mask_BT", [None, MASK_BT], ids=["all", "masked"])
def test_bfloat16_is_summed_in_float32(case, mask_BT):
    student, teacher = (x.bfloat16() for x in case.pair(60))
    exact_pair = student.double(), teacher.double()
    value_B = case.loss(student, teacher, mask_BT)
    assert value_B.dtype == torch.float32
    exact_B = case.loss(*exact_pair, mask_BT)
    torch.testing.assert_close(value_B.double(), exact_B, rtol=5e-3, atol=1e-6)
    # the gradient is rounded to bfloat16 (8 bits) a few times, but not before it is a difference
    slope = gradient(case.loss, student, teacher, mask_BT)
    exact = gradient(case.loss, *exact_pair, mask_BT)
    assert slope.dtype == torch.bfloat16
    torch.testing.assert_close(slope.double(), exact, rtol=0.02, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_sum_over_many_elements_keeps_its_digits(dtype):
    # in bfloat16 a running sum of ones would stop at 256
    ones_BATT = torch.ones(1, 12, 128, 128, dtype=dtype)
    assert attention_mse(ones_BATT, 0 * ones_BATT, None).tolist() == [1.0]
    assert hidden_mse(ones_BATT[0], 0 * ones_BATT[0], None).tolist() == [1.0] * 12


@pytest.mark.parametrize("name", ["attention_mse", "attention_kl"])
def test_scores_stored_keys_by_queries_give_the_same(name):
    loss = CASES[name].loss
    pair = CASES[name].pair(62)
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in pair]
    torch.testing.assert_close(loss(*turned, MASK_BT), loss(*pair, MASK_BT))
    slopes = (gradient(loss, *both, MASK_BT) for both in (turned, pair))
    torch.testing.assert_close(*slopes)


def test_the_gradient_of_scores_keeps_their_memory_order():
    student, teacher = (x.transpose(2, 3) for x in CASES["attention_mse"].pair(63))
    for loss in (attention_mse, attention_kl):
        leaf = student.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, teacher, MASK_BT).sum(), leaf)
        assert slope.stride() == student.stride()


@pytest.mark.parametrize("name", ["attention_kl", "relation_kl"])
@pytest.mark.parametrize("elements", [1, 3 * T * T * 3])
def test_a_few_examples_at_a_time_give_the_same(name, elements, monkeypatch):
    loss, pair = CASES[name].loss, CASES[name].pair(64)
    whole = loss(*pair, MASK_BT), gradient(loss, *pair, MASK_BT), loss(*pair, None)
    monkeypatch.setitem(matching.CHUNK, "cpu", elements)
    parts = loss(*pair, MASK_BT), gradient(loss, *pair, MASK_BT), loss(*pair, None)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("name", ["relation_kl", "gram_mse"])
def test_autocast_does_not_round_the_products(name):
    student, teacher = (x.float() for x in CASES[name].pair(66))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside_B = CASES[name].loss(student, teacher, MASK_BT)
    assert torch.equal(inside_B, CASES[name].loss(student, teacher, MASK_BT))


@every_loss
def test_sides_may_differ_in_dtype(case):
    student, teacher = case.pair(68)
    student = student.bfloat16()
    value_B = case.loss(student, teacher.float(), MASK_BT)
    exact_B = case.loss(student.double(), teacher, MASK_BT)
    torch.testing.assert_close(value_B.double(), exact_B, rtol=1e-5, atol=1e-6)
    assert gradient(case.loss, student, teacher.float(), MASK_BT).dtype == torch.bfloat16


@every_loss
def test_nan_in_a_real_place_stays_visible(case):
    for side in (0, 1):
        pair = list(case.pair(70))
        pair[side].view(B, -1)[1, 0] = math.nan
        assert case.loss(*pair, MASK_BT).isnan().tolist() == [False, True, False, False]


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [attention_mse, attention_kl, relation_kl])
def test_other_numbers_of_heads_are_refused(loss):
    # one head would be broadcast
    for heads in (1, 4):
        with pytest.raises(ValueError, match=f"the student has 3, the teacher {heads}"):
            loss(normal(72, B, 3, T, T), normal(73, B, heads, T, T), None)


@pytest.mark.parametrize("loss", [hint, hidden_mse, cosine])
def test_other_widths_are_refused(loss):
    message = r"the same shape, got \(4, 5, 6\) and \(4, 5, 1\)"
    with pytest.raises(ValueError, match=message):
        loss(normal(74, B, T, 6), normal(75, B, T, 1), None)


@pytest.mark.parametrize("loss", [patience, partial(hint, mask_BT=None)])
def test_an_unknown_variant_is_refused(loss):
    with pytest.raises(ValueError, match="variant must be paper or reference, got papers"):
        loss(normal(79, B, T, 6), normal(80, B, T, 6), variant="papers")


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match=r"the same shape, got \(4, 3, 6\) and \(4, 1, 6\)"):
        patience(normal(76, B, 3, 6), normal(77, B, 1, 6))


@pytest.mark.parametrize("heads", [0, 5, -3])
def test_heads_that_do_not_divide_are_refused(heads):
    message = rf"3 heads of width 4 \(12\) do not split into {heads} heads"
    with pytest.raises(ValueError, match=message):
        split_heads(normal(78, 2, 3, 5, 4), heads)
