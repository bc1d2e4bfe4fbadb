"""Augmented rows of a pool: made once, whole or not at all, none of them held out or reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

import tiny
from stillhouse.core.config import AugmentConfig, DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.progress import Advance
from stillhouse.data.readers import read
from stillhouse.data.rows import Rows, folded_key
from stillhouse.data.sources import Part, Pool, Splits, load, shared
from stillhouse.flows.augment import augmented, write_rows

NONE = np.empty((0, 2), "<u8")


class Seen:
    """Progress that remembers, and calls `check` at every row."""

    def __init__(self, check: Any = lambda: None) -> None:
        self.rows, self.total, self.notes, self.check = 0, 0, [], check

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        self.total = total

        def advance(count: int) -> None:
            self.rows += count
            self.check()

        yield advance


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    path = tiny.reviews(tmp_path / "reviews.csv", 400)
    return load(DataConfig(path=str(path)), tmp_path / "rows")


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """The folder of a masked language model."""
    config: Any = tiny.model("bert").config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        BertForMaskedLM(config).save_pretrained(tmp_path / "masked")
    tiny.tokenizer().save_pretrained(tmp_path / "masked")
    return tmp_path / "masked"


def run(
    pool: Pool, store: Path, *, teacher_seed: int = 0, forbidden: np.ndarray = NONE, **more: Any
) -> Rows:
    own = {key: more.pop(key) for key in ("progress", "stop_words") if key in more}
    config = AugmentConfig.model_validate({"copies": 4, "candidates": 5, **more})
    return augmented(
        pool,
        config,
        teacher=tiny.model(seed=teacher_seed),
        tokenizer=tiny.tokenizer(),
        store=store,
        forbidden_N2=forbidden,
        **own,
    )


def texts(rows: Rows) -> list[str]:
    return [example.text for example in rows.examples(np.arange(len(rows.table)))]


@pytest.mark.parametrize("with_model", [False, True])
def test_rows_become_an_unlabelled_part_apart_from_the_others(
    splits: Splits, masked: Path, tmp_path: Path, with_model: bool
) -> None:
    forbidden = np.concatenate([splits.held_out.folded_N2, splits.reported.folded_N2])
    progress = Seen()
    rows = run(
        splits.labelled,
        tmp_path,
        forbidden=forbidden,
        progress=progress,
        model=str(masked) if with_model else None,
    )
    pool = Pool([*splits.labelled.parts, Part(rows, rows.kept, labelled=False)])
    extra = pool.labels[len(splits.labelled) :]
    assert len(extra) > len(splits.labelled)
    assert set(extra) == {None}
    assert not shared(np.asarray(rows.folded), forbidden).any()
    assert not shared(np.asarray(rows.folded), splits.labelled.folded_N2).any()
    assert progress.rows == progress.total == len(splits.labelled)
    assert str(len(splits.labelled)) in progress.notes[0]


def test_a_forbidden_row_would_have_been_made(splits: Splits, tmp_path: Path) -> None:
    first = run(splits.labelled, tmp_path / "a")
    some = np.asarray(first.folded)[::3]
    second = run(splits.labelled, tmp_path / "a", forbidden=some)
    assert second.folder != first.folder
    assert set(texts(second)) < set(texts(first))
    assert not shared(np.asarray(second.folded), some).any()


def test_no_variant_equals_another_row_of_the_pool(tmp_path: Path) -> None:
    nouns = ["film", "book", "soup", "meal"]
    rows = [(f"{a} {b}", "xy"[i % 2]) for i, a in enumerate(tiny.GOOD) for b in nouns]
    path = tiny.write_csv(tmp_path / "few.csv", ["text", "label"], rows)
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{word} 1 {i}\n" for i, word in enumerate([*tiny.GOOD, *nouns])))
    pool = load(DataConfig(path=str(path)), tmp_path / "rows").labelled
    progress = Seen()
    made = run(pool, tmp_path, share=1, candidates=14, vectors=str(vectors), progress=progress)
    assert not shared(np.asarray(made.folded), pool.folded_N2).any()
    assert "copy of it, 0 equal to another row" not in progress.notes[0]


def test_finished_rows_are_found_again(splits: Splits, masked: Path, tmp_path: Path) -> None:
    first = run(splits.labelled, tmp_path, model=str(masked))
    stamp = (first.folder / "rows.arrow").stat().st_mtime_ns
    progress = Seen()
    again = run(splits.labelled, tmp_path, model=str(masked), progress=progress)
    assert again.folder == first.folder
    assert (again.folder / "rows.arrow").stat().st_mtime_ns == stamp
    assert progress.total == 0
    elsewhere = run(splits.labelled, tmp_path / "b", model=str(masked))
    assert (elsewhere.folder / "rows.arrow").read_bytes() == (
        first.folder / "rows.arrow"
    ).read_bytes()


@pytest.mark.slow
def test_rows_are_found_by_all_that_they_depend_on(
    splits: Splits, masked: Path, tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("film 1 0\nbook 1 0.1\nsoup 0 1\nmeal 0 1.1\n")
    pool, (part,) = splits.labelled, splits.labelled.parts
    half = Pool([Part(part.rows, part.indices[::2], labelled=True)])
    found = [
        run(pool, tmp_path),
        run(half, tmp_path),
        run(pool, tmp_path, share=0.5),
        run(pool, tmp_path, copies=3),
        run(pool, tmp_path, candidates=4),
        run(pool, tmp_path, stop_words=("film",)),
        run(pool, tmp_path, seed=1),
        run(pool, tmp_path, teacher_seed=1),
        run(pool, tmp_path, model=str(masked)),
        run(pool, tmp_path, vectors=str(vectors)),
    ]
    vectors.write_text("film 1 0\nbook 1 0.1\nsoup 0 1\nmeal 0 1.2\nstory 1 2\n")
    found.append(run(pool, tmp_path, vectors=str(vectors)))
    assert len({rows.fingerprint for rows in found}) == len(found)
    assert len({"|".join(texts(rows)) for rows in found}) == len(found)


def test_the_teachers_weights_do_not_matter_where_they_are_not_read(
    splits: Splits, tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("film 1 0\nbook 1 0.1\nsoup 0 1\nmeal 0 1.1\n")
    first, second = (
        run(splits.labelled, tmp_path, vectors=str(vectors), teacher_seed=s) for s in (0, 1)
    )
    assert first.folder == second.folder
    new = {word for text in texts(first) for word in text.split()}
    old = {word for example in splits.labelled for word in example.text.split()}
    assert new <= old | {"film", "book", "soup", "meal"}


def test_the_order_of_the_pool_does_not_matter(splits: Splits, tmp_path: Path) -> None:
    (part,) = splits.labelled.parts
    turned = Pool([Part(part.rows, part.indices[::-1], labelled=True)])
    first, second = run(splits.labelled, tmp_path), run(turned, tmp_path)
    assert first.folder != second.folder
    assert sorted(texts(first)) == sorted(texts(second))


def test_a_killed_one_leaves_nothing_half_written(splits: Splits, tmp_path: Path) -> None:
    def is_clean() -> None:
        assert not [p for p in (tmp_path / "augmented").glob("*") if p.name[0] != "."]

    def stop() -> None:
        is_clean()
        if progress.rows == 200:
            raise KeyboardInterrupt

    progress = Seen(stop)
    with pytest.raises(KeyboardInterrupt):
        run(splits.labelled, tmp_path, progress=progress)
    is_clean()
    assert not list((tmp_path / "augmented").glob("*"))
    after = run(splits.labelled, tmp_path, progress=Seen(is_clean))
    assert len(after.table) > 500


def test_pairs_stay_pairs_and_both_vary(tmp_path: Path) -> None:
    rows = [
        (a, b, "yes")
        for (a, _), (b, _) in zip(tiny.sentences(60), tiny.sentences(60, 1), strict=True)
    ]
    path = tiny.write_csv(tmp_path / "pairs.csv", ["text", "pair", "label"], rows)
    pool = load(DataConfig(path=str(path)), tmp_path / "rows").labelled
    file = tmp_path / "out" / "more.jsonl"
    made = write_rows(run(pool, tmp_path, copies=3), file)
    found = [row for _, row in read(file)]
    assert len(found) == made > len(pool)
    assert {tuple(row) for row in found} == {("text", "pair")}
    assert len({row["text"] for row in found}) > len(pool)
    assert len({row["pair"] for row in found}) > len(pool)
    kept = {folded_key(row["text"], row["pair"]) for row in found}
    assert len(kept) == made
    assert [path.name for path in file.parent.iterdir()] == ["more.jsonl"]


def test_a_file_of_texts_has_no_pair_and_no_label(splits: Splits, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    write_rows(run(splits.labelled, tmp_path, copies=1), file)
    assert {tuple(json.loads(line)) for line in file.read_text().splitlines()} == {("text",)}


def test_nothing_to_replace_is_said(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"made no new row .* \(share 0\.0\)"):
        run(splits.labelled, tmp_path, share=0)
    with pytest.raises(DataError, match=r"can't read .*none\.txt"):
        run(splits.labelled, tmp_path, vectors=str(tmp_path / "none.txt"))
