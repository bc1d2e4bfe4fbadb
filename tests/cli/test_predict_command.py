"""`predict` as a user meets it: rows from a file or a pipe, awkward ones among them."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny

Call = Callable[..., tuple[int, str, str]]
TEXTS = ["good film", 'a "quoted", bad meal', "Ünïcode 中文", "it was " * 3000]


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    class Piped(io.TextIOWrapper):
        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Piped(io.BytesIO(data)))


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """The rows in the form that the path's suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    else:
        tiny.write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_rows_of_any_form_keep_order_and_columns(
    call: Call, teacher: Path, tmp_path: Path, suffix: str
) -> None:
    rows: list[dict[str, object]] = [{"id": f"r{i}", "text": t} for i, t in enumerate(TEXTS)]
    path = write(tmp_path / f"rows{suffix}", rows)
    code, out, said = call("predict", teacher, path)
    assert code == 0, said
    found = lines(out)
    assert [row["text"] for row in found] == [t.strip() if suffix == "" else t for t in TEXTS]
    if suffix != ".txt":
        assert [row["id"] for row in found] == ["r0", "r1", "r2", "r3"]
    assert all(row["answer"] in tiny.SENTIMENT for row in found)
    assert "1 of 4 texts cut: longer than the" in said


@pytest.mark.parametrize(
    "header",
    [
        "text,label",
        "id;text",
        '"ID";"Text"',
        "Text;Label;;;",
        ",text,label",
        "text;;",
    ],
)
def test_a_table_from_a_pipe_is_refused(
    call: Call, teacher: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    piped(monkeypatch, f"{header}\ngood,a\n".encode())
    code, out, said = call("predict", teacher)
    assert (code, out) == (2, "")
    assert f"begins with the names of columns ({header})" in said


@pytest.mark.parametrize("first", ["text, please", "text", "good,bad"])
def test_a_first_line_that_could_be_a_text_is_one(
    call: Call, teacher: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    piped(monkeypatch, f"{first}\nbad\n".encode())
    code, out, _ = call("predict", teacher)
    assert (code, [row["text"] for row in lines(out)]) == (0, [first, "bad"])


def test_lines_from_a_pipe(call: Call, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(
        monkeypatch, "\ufeffgood\r\n\n{not json}\nbad \udcff\n".encode("utf-8", "surrogateescape")
    )
    code, out, said = call("predict", teacher)
    assert code == 0
    found = lines(out)
    assert [row["text"] for row in found] == ["good", "", "{not json}", "bad ?"]
    assert [row.get("error") for row in found] == [None, "it has no text", None, "it is not UTF-8"]
    assert "1 of 4 rows have no answer: it has no text (line 2)" in said
    assert "1 of 4 rows have no answer: it is not UTF-8 (line 4)" in said


def test_objects_from_a_pipe(call: Call, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"id": 1, "text": "good"}\n\n{"id": 2}\n{"text": \n[1]\n{"text": "bad", "n": NaN}\n'
    piped(monkeypatch, data)
    code, out, said = call("predict", teacher, "-")
    assert code == 0
    errors = [row.get("error") for row in lines(out)]
    assert errors == [None, "it has no text", *["it is not a JSON object"] * 2, None]
    assert "2 of 5 rows have no answer: it is not a JSON object (line 4, 5)" in said


def test_a_table_from_a_pipe_is_refused_after_a_mark_of_its_encoding(
    call: Call, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "\ufeffText;Label;;;\r\ngood;a;;;\r\n".encode())
    code, out, said = call("predict", teacher)
    assert (code, out) == (2, "")
    assert "begins with the names of columns (Text;Label;;;)" in said


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n"])
def test_an_array_of_objects_from_a_pipe(
    call: Call, teacher: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, before: str
) -> None:
    rows = [{"id": 1, "text": "good"}, {"id": 2, "text": "über"}, {"id": 3}]
    array = json.dumps(rows, indent=indent, ensure_ascii=False)
    piped(monkeypatch, f"{before}{array}\n".encode())
    code, out, said = call("predict", teacher)
    assert code == 0, said
    found = [row for row in lines(out) if "id" in row]
    assert [(row.get("id"), row.get("text")) for row in found] == [
        (1, "good"), (2, "über"), (3, None),
    ]  # fmt: skip
    assert found[2]["error"] == "it has no text"
    assert found[0]["answer"] in tiny.SENTIMENT


@pytest.mark.parametrize("texts", [["[", "good", "]"], ['[{"text": "good"}, 3]'], ["[{", "bad"]])
def test_lines_that_begin_as_an_array_and_are_none_are_texts(
    call: Call, teacher: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    piped(monkeypatch, "\n".join(texts).encode())
    code, out, _ = call("predict", teacher)
    assert (code, [row["text"] for row in lines(out)]) == (0, texts)


@pytest.mark.parametrize(("suffix", "said"), [(".parquet", "a Parquet file"), (".csv", "no UTF-8")])
def test_a_file_that_is_no_text_is_not_piped(
    call: Call, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str,
    said: str,
) -> None:  # fmt: skip
    path = write(tmp_path / f"rows{suffix}", [{"text": "good"}])
    data = path.read_bytes() if suffix == ".parquet" else path.read_text().encode("utf-16")
    piped(monkeypatch, data)
    code, out, error = call("predict", teacher)
    assert (code, out) == (2, "")
    assert f"standard input is {said}" in error
    assert "name the file instead of piping it" in error


def test_pairs_by_tab_or_column(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save_spans(tmp_path / "spans")
    piped(monkeypatch, b"was it good ?\tthe film was good\n")
    code, out, _ = call("predict", model)
    assert code == 0
    rows: list[dict[str, object]] = [{"q": "was it good ?", "p": "the film was good"}]
    path = write(tmp_path / "rows.csv", rows)
    named = call("predict", model, path, "--text-column", "q", "--pair-column", "p")
    assert named[0] == 0
    assert lines(named[1])[0]["answer"] == lines(out)[0]["answer"]
    code, out, said = call("predict", model, write(tmp_path / "one.csv", [{"text": "was it ?"}]))
    assert (code, out) == (2, "")
    assert "--pair-column" in said


def test_a_csv_has_every_cell_in_its_column(call: Call, teacher: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": text, "answer": i} for i, text in enumerate(TEXTS)]
    rows.insert(1, {"text": "", "answer": 9})
    path, out = write(tmp_path / "rows.csv", rows), tmp_path / "answers.csv"
    code, said, _ = call("predict", teacher, path, "--out", out, "--top", "all", "--json")
    assert code == 0
    with out.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert [row["input_answer"] for row in found] == [str(row["answer"]) for row in rows]
    assert [row["error"] for row in found] == ["", "it has no text", "", "", ""]
    shares = json.loads(found[0]["probabilities"])
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == found[0]["answer"]
    told = json.loads(said)
    assert (told["rows"], told["answered"], told["cut"]) == (5, 4, 1)
    assert told["errors"] == {"it has no text": 1}


def test_top_says_how_many_labels_are_told(call: Call, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", labels=list("abcdefg"))
    path = write(tmp_path / "rows.txt", [{"text": "good"}])
    for top, count in (("1", 1), ("5", 5), ("all", 7), ("9", 7)):
        _, out, _ = call("predict", model, path, "--top", top)
        assert len(lines(out)[0]["probabilities"]) == count  # pyright: ignore


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.csv"], "there is no file none.csv"),
        (["."], "is a folder"),
        (["rows.csv", "--top", "0"], "--top takes"),
        (["rows.csv", "--out", "answers.doc"], "name it .jsonl or .csv"),
        (["rows.csv", "--out", "."], "name it .jsonl"),
        (["rows.csv", "--out", "/dev/null", "--format", "csv"], "no file that can be replaced"),
        (["rows.csv", "--out", "rows.csv"], "holds the rows themselves"),
        (["rows.csv", "--text-column", "body"], "no column 'body'"),
        (["rows.csv", "--format", "xml"], "unknown format 'xml'"),
        (["empty.txt"], "no row that can be answered"),
        (["rows.xlsx"], "spreadsheet"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    call: Call, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.csv", [{"text": "good"}])
    for name in ("empty.txt", "rows.xlsx"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.iterdir())
    code, out, error = call("predict", teacher, *words)
    assert (code, out) == (2, "")
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("stillhouse:")]) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_on_the_way_keeps_the_file_that_was_there(
    call: Call, teacher: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n' * 600 + '{"text": "torn\n', encoding="utf-8")
    out = tmp_path / "answers.jsonl"
    out.write_text("before\n")
    code, _, said = call("predict", teacher, path, "--out", out)
    assert code == 2
    assert "line 601" in said
    assert out.read_text() == "before\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["answers.jsonl", "rows.jsonl"]


@pytest.mark.parametrize("name", [True, False])
def test_rows_that_may_not_be_read_are_no_fault_of_the_output(
    call: Call, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bool
) -> None:
    """Whether what reads them says which file it is, or not."""
    path, opened = write(tmp_path / "locked.csv", [{"text": "good"}]), Path.open

    def locked(self: Path, *words: object, **more: object) -> object:
        if self.name == "locked.csv":
            raise PermissionError(13, "Permission denied", *([str(self)] if name else []))
        return opened(self, *words, **more)  # pyright: ignore

    monkeypatch.setattr(Path, "open", locked)
    code, out, said = call("predict", teacher, path, "--out", tmp_path / "answers.jsonl")
    assert (code, out) == (1, "")
    assert "is not written" not in said
    assert "permission denied" in said
    assert not (tmp_path / "answers.jsonl").exists()


def test_an_output_that_is_there_is_replaced_by_what_is_piped(
    call: Call, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("before\n")
    piped(monkeypatch, b"good\n")
    code, _, said = call("predict", teacher, "--out", out)
    assert (code, len(lines(out.read_text()))) == (0, 1), said


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "stillhouse", *map(str, words)]


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_half_written(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    words = command("predict", teacher, "-", "--out", out)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        running.stdin.write(b"good film\n" * 2000)
        running.stdin.flush()
        limit = time.monotonic() + 60
        while not any(part.stat().st_size for part in tmp_path.glob(".answers*")):
            assert time.monotonic() < limit
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdin.close()
    assert not out.exists()


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(teacher: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.txt", [{"text": "good film"}] * 5000)
    words = command("predict", teacher, path)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert b'"answer"' in running.stdout.readline()
        running.stdout.close()
        said = running.stderr.read()
        assert running.wait() == 0, said
    assert b"Traceback" not in said
    assert b"Broken pipe" not in said
