"""Which of the teacher's layers each of the student's layers learns from.

A layer map is a list of pairs (student layer, teacher layer). Layer k is the output of block k,
from 1; 0, the embeddings, may be named in explicit pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Pairs = list[tuple[int, int]]


def uniform(student: int, teacher: int) -> Pairs:
    """Every student layer, evenly over the teacher: m to m * teacher / student.

    Jiao et al. 2020 (TinyBERT), g(m) = 3m for 4 of 12. Rounded to the nearest layer,
    halves up, and never to the embeddings, which a student deeper than its teacher would meet.
    """
    return [
        (m, max(1, (2 * m * teacher + student) // (2 * student))) for m in range(1, student + 1)
    ]


def top(student: int, teacher: int) -> Pairs:
    """Every student layer, to the teacher's last ones. Jiao et al. 2020 (TinyBERT)."""
    _check_depth("top", student, teacher)
    return [(m, m + teacher - student) for m in range(1, student + 1)]


def bottom(student: int, teacher: int) -> Pairs:
    """Every student layer, to the teacher's first ones. Jiao et al. 2020 (TinyBERT)."""
    _check_depth("bottom", student, teacher)
    return [(m, m) for m in range(1, student + 1)]


def skip(student: int, teacher: int) -> Pairs:
    """As uniform, without the student's last layer. Sun et al. 2019 (PKD), PKD-Skip."""
    _check_more_than_the_last("skip", student)
    return uniform(student, teacher)[:-1]


def last(student: int, teacher: int) -> Pairs:
    """As top, without the student's last layer. Sun et al. 2019 (PKD), PKD-Last."""
    _check_more_than_the_last("last", student)
    _check_depth("last", student, teacher)
    return top(student, teacher)[:-1]


def final(student: int, teacher: int) -> Pairs:
    """The student's last layer, to the teacher's last."""
    return [(student, teacher)]


LAYER_MAPS: dict[str, Callable[[int, int], Pairs]] = {
    "uniform": uniform,
    "top": top,
    "bottom": bottom,
    "skip": skip,
    "last": last,
    "final": final,
}


def layer_map(name_or_pairs: str | Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    """Pairs (student layer, teacher layer) for models of so many layers.

    Raises ValueError for an unknown name, a map that these depths don't allow, and a pair that
    names a layer that is not there.
    """
    if min(student, teacher) < 1:
        raise ValueError(f"a model has at least 1 layer, got student {student}, teacher {teacher}")
    if isinstance(name_or_pairs, str):
        if name_or_pairs not in LAYER_MAPS:
            known = ", ".join(LAYER_MAPS)
            raise ValueError(f"unknown layer map {name_or_pairs}; known: {known}, or pairs")
        return LAYER_MAPS[name_or_pairs](student, teacher)
    if not name_or_pairs:
        raise ValueError("the layer map is empty: name at least one pair of layers")
    return [_checked(pair, student, teacher) for pair in name_or_pairs]


def _checked(pair: Sequence[int], student: int, teacher: int) -> tuple[int, int]:
    if len(pair) != 2 or any(type(layer) is not int for layer in pair):
        raise ValueError(
            f"the layer map consists of pairs (student layer, teacher layer), got {pair}"
        )
    for model, layer, layers in (("student", pair[0], student), ("teacher", pair[1], teacher)):
        if not 0 <= layer <= layers:
            there = "layer 1 only" if layers == 1 else f"layers 1 to {layers}"
            raise ValueError(
                f"the layer map names {model} layer {layer}; "
                f"the {model} has {there} (0: its embeddings)"
            )
    return pair[0], pair[1]


def _check_depth(name: str, student: int, teacher: int) -> None:
    if student > teacher:
        raise ValueError(
            f"layer map {name} gives each student layer a teacher layer of its own: "
            f"the student has {student} layers, the teacher only {teacher}"
        )


def _check_more_than_the_last(name: str, student: int) -> None:
    if student < 2:
        raise ValueError(
            f"layer map {name} leaves the student's last layer out, "
            "and this student has no other: use final"
        )
