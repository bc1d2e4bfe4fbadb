"""Rows that nobody tells apart are never in two splits, however the data come."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from stillhouse.core.config import CorpusConfig, DataConfig
from stillhouse.core.errors import DataError
from stillhouse.core.types import Example
from stillhouse.data.chat import Conversation
from stillhouse.data.documents import documents, text_files
from stillhouse.data.sources import Pool, Splits, load

Row = tuple[str, str | None]  # text and pair
COUNT = 60


def inserted(mark: str) -> Callable[[str], str]:
    """Puts a character behind every third one."""
    return lambda text: "".join(c + mark * (i % 3 == 0) for i, c in enumerate(text))


def spaced(space: str) -> Callable[[str], str]:
    return lambda text: text.replace(" ", space)


def form(name: str) -> Callable[[str], str]:
    return lambda text: unicodedata.normalize(name, text)


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def of(pairs: dict[str, str]) -> Callable[[str], str]:
    """Exchanges strings."""

    def change(text: str) -> str:
        for old, new in pairs.items():
            text = text.replace(old, new)
        return text

    return change


def misordered(text: str) -> str:
    """Marks above and below in the other order, which looks the same."""
    return text.replace("a\u0323\u0301", "a\u0301\u0323")


TWINS: dict[str, Callable[[str], str]] = {
    "zero-width space": inserted("\u200b"),
    "zero-width joiner": inserted("\u200d"),
    "zero-width non-joiner": inserted("\u200c"),
    "word joiner": inserted("\u2060"),
    "byte order mark": lambda text: "\ufeff" + text,
    "soft hyphen": inserted("\u00ad"),
    "variation selector": inserted("\ufe0f"),
    "variation selector supplement": inserted("\U000e0101"),
    "tag": inserted("\U000e0041"),
    "grapheme joiner": inserted("\u034f"),
    "bidi marks": inserted("\u200f"),
    "bidi isolates": lambda text: f"\u2068{text}\u2069",
    "control characters": inserted("\x07"),
    "upper case": str.upper,
    "title case": str.title,
    "swapped case": str.swapcase,
    "sharp s": of({"ß": "ẞ"}),
    "sharp s as two": of({"ß": "SS"}),
    "final sigma": of({"ς": "σ"}),
    "Turkish dotted I": of({"i": "İ"}),
    "Turkish dotless i": of({"I": "ı"}),
    "ligatures": of({"ffi": "ﬃ", "fl": "ﬂ"}),
    "full width": wide,
    "decomposed": form("NFD"),
    "compatibility, decomposed": form("NFKD"),
    "composed": form("NFKC"),
    "order of marks": misordered,
    "half-width kana": of({"ガ": "ｶﾞ", "ラ": "ﾗ", "ス": "ｽ"}),
    "Hangul jamo": of({"한": "\u1112\u1161\u11ab"}),
    "half-width Hangul": of({"하": "\uffbe\uffc2"}),
    "superscripts": of({"2": "²", "3": "³"}),
    "circled digits": of({"1": "①"}),
    "mathematical letters": of({"a": "\U0001d41a"}),
    "no-break space": spaced("\u00a0"),
    "ideographic space": spaced("\u3000"),
    "thin and other spaces": spaced("\u2009\u2003"),
    "line break": spaced("\r\n"),
    "line separator": spaced("\u2028"),
    "tab": spaced("\t"),
    "next line": spaced("\x85"),
    "spaces around": lambda text: f"\n  {text} \t ",
    "iota below": of({"\u1fb7": "\u0391\u0342\u0345"}),
}
PIECES = (
    "Ich weiß", "office flat", "ταΐζω τοὺς λόγος", "Iğdır istanbul", "ガラス", "한 길 하나",
    "x2 y31", "caf\u00e9", "Ça\u0303", "a\u0323\u0301", "\u1fb7", "plain words", "ok, fine!",
)  # fmt: skip


def originals(seed: int = 0) -> list[str]:
    """Different texts, each with all of the pieces that some kind changes, in an order of its own;
    letters stand for their number, so that no digit's form tells them apart."""
    rng = random.Random(seed)
    names = ["".join(each) for each in itertools.product("bcdghjkm", repeat=2)][:COUNT]
    return [" ".join([name, *rng.sample(PIECES, len(PIECES))]) for name in names]


def write(path: Path, rows: Iterable[Row], *, labels: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as file:
        for i, (text, pair) in enumerate(rows):
            row = {"text": text, **({} if pair is None else {"pair": pair})}
            file.write(json.dumps({**row, **({"label": "ab"[i % 2]} if labels else {})}) + "\n")
    return path


def single_file(folder: Path, rows: list[Row], twins: list[Row]) -> DataConfig:
    mixed = [each for both in zip(rows, twins, strict=True) for each in both]
    return DataConfig(path=str(write(folder / "train.jsonl", mixed)), dev_share=0.3, held_out=0.3)


def train_and_dev(folder: Path, rows: list[Row], twins: list[Row]) -> DataConfig:
    write(folder / "train.jsonl", [*twins, *rows[20:]])
    write(folder / "dev.jsonl", rows[:20])
    return DataConfig(path=str(folder), held_out=0.3)


def train_dev_and_test(folder: Path, rows: list[Row], twins: list[Row]) -> DataConfig:
    write(folder / "train.jsonl", [*rows[40:], *twins])
    write(folder / "dev.jsonl", [*twins[10:20], *rows[20:40]])
    write(folder / "test.jsonl", rows[:20])
    return DataConfig(path=str(folder))


def unlabelled_file(folder: Path, rows: list[Row], twins: list[Row]) -> DataConfig:
    write(folder / "data" / "train.jsonl", rows[20:50])
    write(folder / "data" / "dev.jsonl", rows[:20])
    more = write(folder / "more.jsonl", twins, labels=False)
    return DataConfig(path=str(folder / "data"), unlabelled=str(more), held_out=0.3)


def unlabelled_rows(folder: Path, rows: list[Row], twins: list[Row]) -> DataConfig:
    """Training rows without a label, of what is reported and held out."""
    path = write(folder / "train.jsonl", rows[20:50])
    with path.open("a", encoding="ascii") as file:
        for text, pair in twins:
            row = {"text": text, "label": None, **({} if pair is None else {"pair": pair})}
            file.write(json.dumps(row) + "\n")
    write(folder / "dev.jsonl", rows[:20])
    return DataConfig(path=str(folder), held_out=0.3)


def unlabelled_rows_beside_a_test_file(
    folder: Path, rows: list[Row], twins: list[Row]
) -> DataConfig:
    config = unlabelled_rows(folder, rows, twins)
    write(folder / "test.jsonl", rows[50:])
    return config


LAYOUTS = [
    single_file,
    train_and_dev,
    train_dev_and_test,
    unlabelled_file,
    unlabelled_rows,
    unlabelled_rows_beside_a_test_file,
]


def pools(found: Splits) -> dict[str, Pool]:
    return {"train": found.train, "held out": found.held_out, "reported": found.reported}


def check(found: Splits, rows: list[Row], twins: list[Row], *, least: int = 8) -> None:
    """Which row or its twin is where, by the texts as they were written."""
    number: dict[Row, int] = {}
    for i, both in enumerate(zip(rows, twins, strict=True)):
        number |= {(text.strip(), pair and pair.strip()): i for text, pair in both}

    def numbers(pool: Iterable[Example]) -> set[int]:
        return {number[each.text, each.pair] for each in pool}

    own = {name: numbers(pool) for name, pool in pools(found).items()}
    for one, other in itertools.combinations(own, 2):
        assert not own[one] & own[other], f"{one} and {other}"
    assert all(len(each) >= least for each in own.values()), own


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TWINS)
def test_no_text_is_in_two_splits(
    tmp_path: Path, kind: str, layout: Callable[[Path, list[Row], list[Row]], DataConfig]
) -> None:
    texts = originals()
    rows, twins = ([(t, None) for t in each] for each in (texts, list(map(TWINS[kind], texts))))
    assert all(row != twin for row, twin in zip(rows, twins, strict=True))
    found = load(layout(tmp_path / "data", rows, twins), tmp_path / "store")
    check(found, rows, twins)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["as it is", "upper case", "zero-width space"])
def test_no_pair_is_in_two_splits_in_either_order(
    tmp_path: Path, kind: str, layout: Callable[[Path, list[Row], list[Row]], DataConfig]
) -> None:
    change = TWINS.get(kind, str)
    rows: list[Row] = list(zip(originals(0), originals(1)[::-1], strict=True))
    twins: list[Row] = [(change(str(pair)), change(text)) for text, pair in rows]
    found = load(layout(tmp_path / "data", rows, twins), tmp_path / "store")
    check(found, rows, twins)


@pytest.mark.parametrize("kind", [*TWINS, "weights"])
def test_no_conversation_is_in_two_splits(tmp_path: Path, kind: str) -> None:
    """JSON writes line ends, tabs and control characters in letters, which no folding sees."""
    path, change = tmp_path / "rows.jsonl", TWINS.get(kind, str)
    more = {"weight": 0} if kind == "weights" else {}
    number: dict[str, str] = {}
    with path.open("w", encoding="ascii") as file:
        for text in originals():
            for told, said in ((text, {}), (change(text), more)):
                turns = [
                    {"role": "user", "content": told},
                    {"role": "assistant", "content": "which one?", **said},
                    {"role": "user", "content": "that one"},
                ]
                number[Conversation(tuple(turns)).stored] = text
                turns.append({"role": "assistant", "content": f"answer {len(number)}"})
                file.write(json.dumps({"messages": turns}) + "\n")
    assert len(number) == 2 * COUNT
    config = DataConfig(path=str(path), dev_share=0.3, held_out=0.3)
    found = pools(load(config, tmp_path / "store", texts=True))
    own = [{number[each.text] for each in pool} for pool in found.values()]
    assert sum(map(len, own)) == len(set().union(*own)) == COUNT


def test_a_pair_turned_round_is_another_question_to_a_teacher(tmp_path: Path) -> None:
    """Among training rows it stays: only what is reported or held out is left out."""
    rows: list[Row] = list(zip(originals(0), originals(1), strict=True))
    turned: list[Row] = [(str(pair), text) for text, pair in rows]
    found = load(unlabelled_file(tmp_path, rows, turned), tmp_path / "store")
    assert len(found.unlabelled) == COUNT - len(found.held_out) - len(found.reported)
    assert not {each.text for each in found.unlabelled} & {each.text for each in found.labelled}
    assert len({*map(bytes, found.train.keys_N2)}) == len(found.train)


@pytest.mark.parametrize("files", [["train"], ["train", "valid"], ["train", "valid", "test"]])
@pytest.mark.parametrize("kind", [k for k in TWINS if "line" not in k])  # lines are what is split
def test_no_line_of_running_text_is_in_two_splits(
    tmp_path: Path, kind: str, files: list[str]
) -> None:
    rows = originals()
    twins = list(map(TWINS[kind], rows))
    number = {text.strip(): i for both in (rows, twins) for i, text in enumerate(both)}
    (tmp_path / "text").mkdir()
    own = {"train": [*rows, *twins], "valid": twins[10:30], "test": rows[:20]}
    for name in files:
        text = "\n".join(own[name]) + "\n"
        (tmp_path / "text" / f"{name}.txt").write_bytes(text.encode())
    config = CorpusConfig(path=str(tmp_path / "text"), held_out=0.3, reported=0.3)
    paths, found = text_files(config), {}
    shares = {s: 0.3 for s in ("reported", "held_out") if s not in paths}
    for document in documents(paths, shares, Counter(), lambda size: None):
        split, text = document[:2]
        found.setdefault(split, set()).add(number[text])
    assert len(found) == 3
    for one, other in itertools.combinations(found.values(), 2):
        assert not one & other


@pytest.mark.parametrize("all_of_it", [True, False])
def test_rows_to_select_on_that_are_all_reported_are_refused(
    tmp_path: Path, all_of_it: bool
) -> None:
    """Before, nothing was left to select on, and nobody was told."""
    rows = [(text, None) for text in originals()]
    write(tmp_path / "train.jsonl", rows[30:])
    write(tmp_path / "test.jsonl", rows[:20])
    write(tmp_path / "dev.jsonl", [(t.upper(), None) for t, _ in rows[: 10 if all_of_it else 24]])
    config = DataConfig(path=str(tmp_path))
    if all_of_it:
        with pytest.raises(DataError, match="no row of dev is left to select on, as all 10") as no:
            load(config, tmp_path / "store")
        assert "\n" not in str(no.value)
        return
    found = load(config, tmp_path / "store")
    assert len(found.held_out) == 4
    assert found.dropped["to select on, also reported"] == 20
    assert any(note.startswith("20 rows to select on left out") for note in found.notes)


def test_rows_to_select_on_without_a_label_are_refused(tmp_path: Path) -> None:
    rows = [(text, None) for text in originals()]
    write(tmp_path / "train.jsonl", rows[30:])
    write(tmp_path / "test.jsonl", rows[:20])
    (tmp_path / "dev.jsonl").write_text('{"text": "a film", "label": null}\n', encoding="utf-8")
    with pytest.raises(DataError, match="none has a label"):
        load(DataConfig(path=str(tmp_path)), tmp_path / "store")
