"""Progress on a terminal, on standard error. Without a terminal: one line a stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from stillhouse.core.progress import Advance


def rate(speed: float, unit: str) -> str:
    """Units a second, or seconds a unit where these are slow."""
    if speed >= 1:
        return f"{speed:,.0f} {unit}/s"
    return f"{1 / speed:,.1f} s each" if speed > 0 else ""


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text("" if speed is None else rate(speed, unit), style="dim")


class Terminal:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        if not self.console.is_terminal:
            yield from self._plain(title, total, unit)
            return
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=self.console, transient=False) as bar:
            task = bar.add_task(title, total=total or None, unit=unit)
            yield lambda count: bar.update(task, advance=count)

    def _plain(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        started, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count

        yield advance
        seconds = time.perf_counter() - started
        speed = f", {rate(done / seconds, unit)}" if done and seconds > 0 else ""
        told = f"{done:,} of {total:,}" if total else f"{done:,}"
        self.note(f"{title}: {told} {unit} in {seconds:.1f} s{speed}")
