"""`write_run`, the one fixture all of these tests need."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from .runs import WriteRun, write


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes a finished run's folder: `write_run(name, record=..., lines=...)`."""
    return partial(write, tmp_path)
