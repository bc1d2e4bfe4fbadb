"""Which rows go where: by content, never in two places."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from stillhouse.core.config import DataConfig
from stillhouse.core.errors import DataError
from stillhouse.data.sources import Pool, Splits, load


def splits(tmp_path: Path, path: Path, **settings: Any) -> Splits:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    return load(DataConfig(path=str(path), **given), tmp_path / "store")


def texts(pool: Pool) -> set[str]:
    return {example.text for example in pool}


def parts(found: Splits) -> list[set[str]]:
    return [texts(p) for p in (found.labelled, found.unlabelled, found.held_out, found.reported)]


def apart(found: Splits) -> bool:
    return all(not (a & b) for a, b in itertools.combinations(parts(found), 2))


def folder(tmp_path: Path, **files: list[tuple[str, str]]) -> Path:
    for name, rows in files.items():
        tiny.write_csv(tmp_path / "data" / f"{name}.csv", ["text", "label"], rows)
    return tmp_path / "data"


ROWS = tiny.sentences(100)


def test_a_single_file_is_cut_in_three(tmp_path: Path) -> None:
    found = splits(tmp_path, folder(tmp_path, train=ROWS) / "train.csv")
    labelled, unlabelled, held_out, reported = (len(p) for p in parts(found))
    assert 10 <= reported <= 30  # a share of 0.2, row by row
    assert (unlabelled, held_out) == (0, round((100 - reported) * 0.1))
    assert labelled == 100 - held_out - reported
    assert apart(found)
    assert set.union(*parts(found)) == {text for text, _ in ROWS}


def test_train_and_dev_report_on_dev(tmp_path: Path) -> None:
    found = splits(tmp_path, folder(tmp_path, train=ROWS[:70], dev=ROWS[60:]))
    assert texts(found.reported) == {text for text, _ in ROWS[60:]}
    assert apart(found)
    assert len(found.labelled) + len(found.held_out) == 60
    assert found.dropped == {"also reported or held out": 10}


def test_train_dev_and_test_select_on_dev_and_report_on_test(tmp_path: Path) -> None:
    data = folder(tmp_path, train=ROWS[:60], dev=ROWS[50:80], test=ROWS[75:])
    found = splits(tmp_path, data)
    assert texts(found.reported) == {text for text, _ in ROWS[75:]}
    assert texts(found.held_out) == {text for text, _ in ROWS[50:75]}
    assert texts(found.labelled) == {text for text, _ in ROWS[:50]}
    assert found.dropped == {"also reported or held out": 10, "to select on, also reported": 5}


def test_unlabelled_rows_that_are_selected_or_reported_on_are_left_out(tmp_path: Path) -> None:
    data = folder(tmp_path, train=ROWS[:40], dev=ROWS[40:60])
    extra = tmp_path / "extra.txt"
    extra.write_text("\n".join(text for text, _ in ROWS), encoding="utf-8")
    found = splits(tmp_path, data, unlabelled=extra)
    assert apart(found)
    assert texts(found.unlabelled) == {text for text, _ in ROWS[60:]}
    assert found.dropped["also reported or held out"] == 20 + len(found.held_out)
    assert set(found.unlabelled.labels.tolist()) == {None}
    assert len(found.train) == len(found.labelled) + len(found.unlabelled)


def test_labelled_rows_hides_the_labels_of_the_others(tmp_path: Path) -> None:
    found = splits(tmp_path, folder(tmp_path, train=ROWS) / "train.csv", labelled_rows=20)
    reported = len(found.reported)
    assert [len(p) for p in parts(found)] == [18, 80 - reported, 2, reported]
    assert apart(found)
    assert set(found.unlabelled.labels.tolist()) == {None}
    assert [e.label for e in found.train.at(np.arange(len(found.train)))][:18] == (
        found.labelled.labels.tolist()
    )


def test_rows_without_a_label_are_for_the_teacher_only(tmp_path: Path) -> None:
    rows = [(text, label if i % 2 else "") for i, (text, label) in enumerate(ROWS)]
    found = splits(tmp_path, folder(tmp_path, train=rows, dev=rows[:20]))
    assert len(found.reported) == 10
    assert None not in found.labelled.labels.tolist() + found.held_out.labels.tolist()
    assert apart(found)


def test_reordered_rows_are_split_alike(tmp_path: Path) -> None:
    shuffled = [ROWS[i] for i in np.random.default_rng(3).permutation(len(ROWS))]
    first = splits(tmp_path, folder(tmp_path / "a", train=ROWS), labelled_rows=30, dev_share=0.3)
    again = splits(
        tmp_path, folder(tmp_path / "b", train=shuffled), labelled_rows=30, dev_share=0.3
    )
    assert parts(first) == parts(again)


def test_rows_that_come_later_do_not_reshuffle_the_report(tmp_path: Path) -> None:
    one = splits(tmp_path, folder(tmp_path / "a", train=ROWS[:90]))
    more = splits(tmp_path, folder(tmp_path / "b", train=ROWS))
    assert len(texts(one.reported) & texts(more.reported)) >= 15


def test_splits_are_not_alike_among_their_purposes(tmp_path: Path) -> None:
    """The rows held out are not simply those that would have been reported next."""
    path = folder(tmp_path, train=ROWS) / "train.csv"
    more = splits(tmp_path, path, dev_share=0.4)
    held = texts(splits(tmp_path, path, dev_share=0.2, held_out=0.25).held_out)
    assert held - texts(more.reported)


def test_pools_answer_by_position(tmp_path: Path) -> None:
    found = splits(tmp_path, folder(tmp_path, train=ROWS), labelled_rows=20)
    everything = list(found.train)
    asked = np.array([70, 3, 17, 18, 0])
    assert [e.text for e in found.train.at(asked)] == [everything[i].text for i in asked]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dev": "nothing.csv"}, "no file nothing.csv"),
        ({"unlabelled": "nothing.txt"}, "no file nothing.txt"),
        ({"text": "body"}, "no column 'body'; it has text, label"),
        ({"labelled_rows": 1}, "1 labelled rows to train on"),
        ({"dev_share": 0.0}, "of 100 usable rows 0 are"),
    ],
)
def test_what_cannot_be_split_is_one_line(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        splits(tmp_path, folder(tmp_path, train=ROWS) / "train.csv", **settings)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "no.csv", tmp_path / "nothing", Path("reviews.csv")):
        with pytest.raises(DataError, match="there is no file or folder"):
            splits(tmp_path, path)


def test_pairs_and_single_texts_do_not_mix(tmp_path: Path) -> None:
    pairs = [(a, b, label) for (a, label), (b, _) in itertools.pairwise(ROWS)]
    path = tiny.write_csv(tmp_path / "pairs.csv", ["premise", "hypothesis", "label"], pairs)
    extra = tmp_path / "extra.txt"
    extra.write_text("good film\nbad film\n", encoding="utf-8")
    assert apart(splits(tmp_path, path))
    with pytest.raises(DataError, match="second text"):
        splits(tmp_path, path, unlabelled=extra)


def test_texts_that_differ_in_case_or_spacing_only_never_part(tmp_path: Path) -> None:
    """Whatever split one lands in, its twins are there or left out: in one file, and in two."""
    twins = [(f"  {text.upper()} ", label) for text, label in ROWS]
    spaced = [(text.replace(" ", "\u00a0 "), label) for text, label in ROWS]
    more = tiny.sentences(200)[100:]
    for name, given in (
        ("a", {"train": ROWS + twins + spaced}),
        ("b", {"train": more + twins, "dev": ROWS}),
    ):
        found = splits(tmp_path, folder(tmp_path / name, **given))
        folded = [{" ".join(t.casefold().split()) for t in part} for part in parts(found)]
        assert all(not (a & b) for a, b in itertools.combinations(folded, 2))
        assert len(folded[0]) > 50
        assert len(folded[3]) > 9


def test_no_unlabelled_row_is_also_held_out(tmp_path: Path) -> None:
    """Labelled in one spelling, unlabelled in another: the second may not be trained on."""
    twins = [(text.upper(), "") for text, _ in ROWS]
    found = splits(tmp_path, folder(tmp_path, train=ROWS + twins) / "train.csv")
    folded = [{t.casefold() for t in part} for part in parts(found)]
    assert folded[2]
    assert not folded[2] & (folded[0] | folded[1])


def test_no_row_changes_sides_when_the_file_grows(tmp_path: Path) -> None:
    few = splits(tmp_path, folder(tmp_path / "a", train=ROWS[:60]), dev_share=0.3)
    many = splits(tmp_path, folder(tmp_path / "b", train=ROWS), dev_share=0.3)
    assert texts(few.reported) <= texts(many.reported)
    assert not texts(few.train) & texts(many.reported)


def test_too_few_rows_to_hold_one_out_are_told(tmp_path: Path) -> None:
    data = folder(tmp_path, train=ROWS[:4], dev=ROWS[4:40])
    assert any("nothing selects" in note for note in splits(tmp_path, data).notes)
    assert not any("nothing selects" in n for n in splits(tmp_path, data, held_out=0.0).notes)
    assert not any("nothing selects" in n for n in splits(tmp_path, data, held_out=0.3).notes)


def test_rows_without_a_label_are_counted_wherever_they_were_for(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name, rows in (
        ("train", [(f"text {i}", "ab"[i % 2]) for i in range(20)]),
        ("dev", [("dev one", "a"), ("dev two", ""), ("dev three", "b")]),
        ("test", [(f"test {i}", "ab"[i % 2] if i < 4 else "") for i in range(6)]),
    ):
        tiny.write_csv(folder / f"{name}.csv", ["text", "label"], rows)
    found = load(DataConfig(path=str(folder)), tmp_path / "rows")
    assert (len(found.reported), len(found.held_out)) == (4, 2)
    assert found.dropped["to report on, without a label"] == 2
    assert "2 rows to report on left out: no label" in found.notes
    assert "1 row to select on left out: no label" in found.notes
