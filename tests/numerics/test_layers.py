import pytest

from stillhouse.numerics.layers import LAYER_MAPS, layer_map


def test_uniform_of_tinybert():
    assert layer_map("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_map("uniform", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]


def test_skip_and_last_of_patient_distillation():
    assert layer_map("skip", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert layer_map("last", 6, 12) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert layer_map("skip", 3, 12) == [(1, 4), (2, 8)]
    assert layer_map("last", 3, 12) == [(1, 10), (2, 11)]


def test_top_and_bottom_of_tinybert():
    assert layer_map("top", 4, 12) == [(1, 9), (2, 10), (3, 11), (4, 12)]
    assert layer_map("bottom", 4, 12) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_final():
    assert layer_map("final", 6, 12) == [(6, 12)]
    assert layer_map("final", 1, 1) == [(1, 1)]


def test_uniform_rounds_halves_up():
    # 6 of 4: 1.5, 3, 4.5, 6; Python's round would make them 2, 3, 4, 6
    assert layer_map("uniform", 4, 6) == [(1, 2), (2, 3), (3, 5), (4, 6)]


def test_uniform_of_a_deeper_student_never_names_the_embeddings():
    assert layer_map("uniform", 6, 2) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert layer_map("uniform", 3, 1) == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize("name", LAYER_MAPS)
@pytest.mark.parametrize("depths", [(2, 2), (2, 3), (3, 7), (5, 12), (12, 12), (6, 24)])
def test_every_map_stays_inside_both_models_and_climbs(name, depths):
    student, teacher = depths
    pairs = layer_map(name, student, teacher)
    students, teachers = zip(*pairs, strict=True)
    assert list(students) == sorted(set(students))
    assert list(teachers) == sorted(set(teachers))
    assert min(students + teachers) >= 1
    assert max(students) <= student
    assert max(teachers) <= teacher
    leaves_the_last_out = name in ("skip", "last")
    assert (student in students) is not leaves_the_last_out
    assert layer_map(pairs, student, teacher) == pairs


@pytest.mark.parametrize("name", sorted(set(LAYER_MAPS) - {"skip", "last"}))
def test_equal_depth_is_one_to_one(name):
    one_to_one = [(m, m) for m in range(1, 5)]
    assert layer_map(name, 4, 4) == (one_to_one[-1:] if name == "final" else one_to_one)


def test_explicit_pairs_may_name_embeddings_and_a_layer_twice():
    pairs = [[0, 0], [1, 4], [1, 6]]
    assert layer_map(pairs, 3, 12) == [(0, 0), (1, 4), (1, 6)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [(1, 1), (9, 2)],
            "the layer map names student layer 9; "
            "the student has layers 1 to 3 (0: its embeddings)",
        ),
        (
            [(3, 13)],
            "the layer map names teacher layer 13; "
            "the teacher has layers 1 to 12 (0: its embeddings)",
        ),
        (
            [(-1, 2)],
            "the layer map names student layer -1; "
            "the student has layers 1 to 3 (0: its embeddings)",
        ),
        ([], "the layer map is empty: name at least one pair of layers"),
        (
            [(1, 2, 3)],
            "the layer map consists of pairs (student layer, teacher layer), got (1, 2, 3)",
        ),
        (
            [(1, True)],
            "the layer map consists of pairs (student layer, teacher layer), got (1, True)",
        ),
    ],
)
def test_a_wrong_pair_is_named(pairs, message):
    with pytest.raises(ValueError) as refusal:
        layer_map(pairs, 3, 12)
    assert str(refusal.value) == message


def test_a_model_of_one_layer_is_told_so():
    with pytest.raises(ValueError, match=r"teacher layer 2; the teacher has layer 1 only \(0:"):
        layer_map([(1, 2)], 3, 1)


@pytest.mark.parametrize("name", ["top", "bottom", "last"])
def test_a_student_deeper_than_the_teacher_is_refused(name):
    message = rf"layer map {name} .*the student has 6 layers, the teacher only 4"
    with pytest.raises(ValueError, match=message):
        layer_map(name, 6, 4)


@pytest.mark.parametrize("name", ["skip", "last"])
def test_no_layer_but_the_last_is_refused(name):
    with pytest.raises(ValueError, match="this student has no other: use final"):
        layer_map(name, 1, 12)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown layer map emd; known: {', '.join(LAYER_MAPS)}"):
        layer_map("emd", 3, 12)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least 1 layer, got student 0, teacher 12"):
        layer_map("uniform", 0, 12)


def test_the_dict_holds_the_functions_under_their_names():
    assert all(function.__name__ == name for name, function in LAYER_MAPS.items())
