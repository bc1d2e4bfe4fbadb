"""A figure with its words, as the template takes it."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    title: str
    svg: Markup
    note: str
    wide: bool


def drawn(title: str, svg: str, note: str = "", *, wide: bool = False) -> Figure:
    # Safe: matplotlib escapes the text it draws, and canvas the label.
    return Figure(title, Markup(svg), note, wide)
