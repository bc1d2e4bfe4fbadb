"""What the system refuses is one line, through whatever library it comes."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import tiny
from limited import file_size
from stillhouse.core.errors import DataError, RunError, UsageError
from stillhouse.core.rundir import atomic, atomic_folder, claim, writes
from stillhouse.core.trouble import refused, told, unwritten


def _sqlite(path: Path) -> None:
    with sqlite3.connect(path) as held:
        held.execute("create table a (b)")
        held.executemany("insert into a values (?)", [("x" * 1000,)] * 100)


def _figure(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9))
    figure.subplots().imshow(np.random.default_rng(0).random((200, 200)))
    figure.savefig(path, format="png")


def _onnx(path: Path) -> None:
    from onnx import helper, save

    weights = helper.make_tensor("w", 1, [50_000], np.zeros(50_000, np.float32))
    save(helper.make_model(helper.make_graph([], "g", [], [], [weights])), path)


NUMBERS = np.random.default_rng(0).integers(1 << 60, size=20_000)
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 100_000),
    "safetensors": lambda path: save_file({"a": torch.zeros(50_000)}, path),
    "tokenizers": lambda path: tiny.tokenizer().backend_tokenizer.save(str(path)),
    "numpy": lambda path: np.save(path, NUMBERS),
    "arrow": lambda path: pq.write_table(pa.table({"a": NUMBERS}), path),
    "onnx": _onnx,
    "sqlite": _sqlite,
    "matplotlib": _figure,
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_what_does_not_fit_is_one_line_whoever_writes_it(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with file_size(2_000), pytest.raises(RunError) as caught, writes(path):
        WRITERS[writer](path)
    said = str(caught.value)
    assert str(path) in said
    assert "is not written" in said
    assert "\n" not in said
    assert said.split(":")[0] in ("file too large", "no space left on device", "input/output error")


def test_nothing_is_left_of_a_file_or_folder_that_did_not_fit(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    with file_size(2_000):
        with pytest.raises(RunError, match="what was there is kept"), atomic(tmp_path / "a") as new:
            WRITERS["safetensors"](new)
        with pytest.raises(RunError, match="rows"), atomic_folder(tmp_path / "b", "rows") as new:
            WRITERS["numpy"](new / "rows.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"
    with atomic(tmp_path / "a") as new:
        new.write_text("after")
    assert (tmp_path / "a").read_text() == "after"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), errno.ENOSPC),
        (OSError(errno.EROFS, "Read-only file system", "a"), errno.EROFS),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), errno.EDQUOT),
        (RuntimeError("Error while serializing: I/O error: ... (os error 28)"), errno.ENOSPC),
        (OSError("[Errno 28] Error writing bytes. Detail: [errno 28] No space"), errno.ENOSPC),
        (OSError("20000 requested and 1024 written"), errno.ENOSPC),
        (sqlite3.OperationalError("database or disk is full"), errno.ENOSPC),
        (sqlite3.OperationalError("attempt to write a readonly database"), errno.EROFS),
        (Exception("could not extend file: No space left on device"), errno.ENOSPC),
        (ValueError("12 requested"), None),
        (ValueError("the label 'Permission denied' is no number"), None),
        (pa.lib.ArrowInvalid("can't convert 'No space left on device [Errno 28]'"), None),
        (KeyError("Permission denied"), None),
        (RuntimeError("no class 'Permission denied'"), None),
        (DataError("the label (os error 28) has no row"), None),
        (KeyError("a"), None),
        (DataError("there is no file a"), None),
    ],
)
def test_the_systems_number_is_found(error: Exception, number: int | None) -> None:
    found = refused(error)
    assert (found and found[0]) == number
    outer = RuntimeError("while it was written")
    outer.__cause__ = error
    assert (refused(outer) or (None,))[0] == number


def test_an_error_that_says_it_already_is_left_as_it_is() -> None:
    inner = OSError(errno.ENOSPC, "No space left on device", "a")
    outer = RunError("can't write a")
    outer.__cause__ = inner
    assert unwritten(Path("b"), outer) is None
    assert "free some space" in str(unwritten(Path("b"), inner))
    assert told(ValueError("wrong")) is None
    assert str(told(OSError("the hub is away"))) == "the hub is away"


def test_a_file_that_is_read_meanwhile_is_no_fault_of_the_one_that_is_written(
    tmp_path: Path,
) -> None:
    def refusal(*names: Path) -> RunError:
        first, *more = map(str, names)
        error = OSError(errno.EACCES, "Permission denied", first, None, *more)
        found = unwritten(tmp_path / "out" / "a", error)
        assert isinstance(found, RunError)
        return found

    out, other = tmp_path / "out", tmp_path / "locked.csv"
    assert str(refusal(other)) == f"permission denied: {other}"
    assert str(refusal(out / "rows.csv")) == f"permission denied: {out / 'rows.csv'}"
    for names in ([out], [out / "a"], [out / "a" / "b"], [out / ".a.x.part"], [other, out / "a"]):
        assert "out/a is not written" in str(refusal(*names))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("file/run", "a file is where a folder is due"),
        ("loop", "choose another path"),
        ("loop/run", "links lead in a circle"),
        ("n" * 300, "choose a shorter path"),
        ("file", "is not a run"),
    ],
)
def test_a_path_that_can_be_no_run_is_a_wrong_call(path: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=says) as caught:
        claim(tmp_path / path, {"seed": 1})
    assert "\n" not in str(caught.value)
    assert {each.name for each in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_leave_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match=r"permission denied: .*choose a folder that you may write"):
        claim(tmp_path / "locked" / "run", {"seed": 1})
