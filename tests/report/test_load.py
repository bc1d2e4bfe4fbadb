import re
from pathlib import Path

import pytest

from stillhouse.core.errors import UsageError
from stillhouse.report.html import load, render

from .runs import WriteRun


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("record.json", None, "is not a finished run: it has no record.json"),
        ("record.json", "{", "record.json is not a finished run's record: Invalid JSON"),
        ("record.json", '{"schema": 1}', "record.json is not a finished run's record: schema"),
        ("manifest.json", "{", "manifest.json is not JSON"),
        ("manifest.json", "[]", "manifest.json holds a list, not an object"),
        ("metrics.jsonl", "oops", "metrics.jsonl, line 1"),
    ],
)
def test_unfinished_run_is_one_clear_line(
    write_run: WriteRun, name: str, content: str | None, message: str
) -> None:
    folder = write_run()
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        render([tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(UsageError, match="at least one run"):
        render([], tmp_path / "r.html")
