"""Students: which layers stay, what fresh shapes get, what is refused."""

from __future__ import annotations

import pytest
import torch

import tiny
from stillhouse.core.config import StudentConfig
from stillhouse.core.errors import ModelError
from stillhouse.models.student import build, choose_layers, parameters, refuse_larger, take_layers


@pytest.mark.parametrize(
    ("total", "count", "keep", "layers"),
    [
        (12, 6, "alternate", [2, 4, 6, 8, 10, 12]),
        (6, 3, "alternate", [2, 4, 6]),
        (12, 4, "alternate", [3, 6, 9, 12]),
        (4, 1, "alternate", [4]),
        (5, 5, "alternate", [1, 2, 3, 4, 5]),
        (6, 2, "first", [1, 2]),
        (6, 2, "last", [5, 6]),
    ],
)
def test_layers_by_hand(total: int, count: int, keep: str, layers: list[int]) -> None:
    assert choose_layers(total, count, keep) == layers


def test_any_count_gives_that_many_rising_layers() -> None:
    for total in range(1, 25):
        for count in range(1, total + 1):
            for keep in ("alternate", "first", "last"):
                layers = choose_layers(total, count, keep)
                assert len(layers) == count
                assert layers == sorted(set(layers))
                assert layers[0] >= 1
                assert layers[-1] == total or keep == "first"


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_student_of_all_layers_is_its_teacher(kind: str) -> None:
    source = tiny.model(kind, layers=3)
    student = take_layers(source, [1, 2, 3])
    assert type(student) is type(source)
    for name, tensor in source.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    assert not student.training


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_taken_weights_are_copies(kind: str) -> None:
    source = tiny.model(kind, layers=3)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    student = take_layers(source, [1, 3])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert source.config.num_hidden_layers == 3
    assert student.config.num_hidden_layers == 2


def test_the_label_names_come_along() -> None:
    student = build(tiny.model(labels=["no", "yes"], layers=2), StudentConfig())
    assert student.config.id2label == {0: "no", 1: "yes"}
    assert student.config.num_hidden_layers == 1


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_fresh_shape_is_as_asked_and_follows_its_seed(kind: str) -> None:
    source = tiny.model(kind, layers=3)
    shape = StudentConfig(layers=2, width=16)
    student, same, other = (build(source, shape, seed=seed) for seed in (1, 1, 2))
    assert student.config.hidden_size == 16
    assert student.config.num_attention_heads == 1  # heads of the source's size
    ids = torch.tensor([[2, 10, 30, 3]])
    assert student(input_ids=ids).logits.shape == (1, 2)
    states = [model.state_dict() for model in (student, same, other)]
    name = next(name for name, tensor in states[0].items() if tensor.ndim == 2)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])
    inner = [
        tuple(t.shape)
        for n, t in states[0].items()
        if n.endswith(("intermediate.dense.weight", "lin1.weight"))
    ]
    assert inner == [(32, 16)] * 2


def test_a_fresh_shape_of_equal_width_keeps_the_embeddings() -> None:
    source = tiny.model(layers=3)
    student = build(source, StudentConfig(ffn=24), seed=1)
    mine, theirs = (m.get_input_embeddings().weight for m in (student, source))
    assert torch.equal(mine, theirs)
    assert mine.data_ptr() != theirs.data_ptr()
    assert student.config.num_hidden_layers == 3
    assert student.config.intermediate_size == 24


def test_building_leaves_torchs_random_numbers_alone() -> None:
    source = tiny.model()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(source, StudentConfig(width=16, layers=1), seed=5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (StudentConfig(layers=5), "larger than its source's 4"),
        (StudentConfig(layers=[2, 5]), "not all among the source's 1 to 4"),
        (StudentConfig(width=18, heads=4), "not a multiple of 4 heads"),
    ],
)
def test_impossible_shapes_are_refused(shape: StudentConfig, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        build(tiny.model(layers=4), shape)
    assert "\n" not in str(caught.value)


def test_a_larger_student_is_refused() -> None:
    small, big = tiny.model(layers=1), tiny.model(layers=2)
    refuse_larger(small, big)
    refuse_larger(big, big)
    with pytest.raises(ModelError, match=f"{parameters(big):,} against {parameters(small):,}"):
        refuse_larger(big, small)
