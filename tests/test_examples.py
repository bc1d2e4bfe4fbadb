"""The scripts in examples/ run as they stand, on any teacher and rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(script: Path, teacher: Path, reviews: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script), str(teacher), str(reviews)]
    own = {**os.environ, "STILLHOUSE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("student" in done.stdout) or ("stranger" in done.stdout)
