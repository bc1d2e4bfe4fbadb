"""Report pages: run folders in, one self-contained HTML page out. No torch."""

from stillhouse.report.html import Run, load, render

__all__ = ["Run", "load", "render"]
