"""Report pages: run folders in, one self-contained HTML page out. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["render"]


def render(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page of one run, or of several side by side, to `out`; returns `out`. What draws
    it is loaded now: hours pass between a run's start and its page.

    Raises UsageError if a folder isn't a finished run's.
    """
    from stillhouse.report import html

    return html.render(runs, out)
