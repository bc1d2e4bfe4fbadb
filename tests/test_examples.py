"""The scripts in examples/ run as they stand, on any teacher and rows."""

from __future__ import annotations

from pathlib import Path

import pytest

import killing

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))

SCRIPT = """
import os, runpy, sys
script, folder, *sys.argv[1:] = sys.argv[1:]
os.environ["STILLHOUSE_CACHE"] = os.path.join(folder, "cache")
os.chdir(folder)
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(script: Path, teacher: Path, reviews: Path, tmp_path: Path) -> None:
    done = killing.run(SCRIPT, str(script), str(tmp_path), str(teacher), str(reviews))
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("student" in done.stdout) or ("stranger" in done.stdout)
