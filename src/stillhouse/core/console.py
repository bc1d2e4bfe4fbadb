"""Progress on standard error: bars on a terminal; elsewhere, as in a log, a line when a stage ends
and one every half minute until then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
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

from stillhouse.core.pace import Pace, lasting, rate
from stillhouse.core.progress import Advance

EVERY_S = 30.0  # silence inside a stage without a terminal, at most


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text("" if speed is None else rate(speed, unit), style="dim")


class Terminal:
    """Progress of one thread's work. Of stages inside each other the innermost speaks."""

    def __init__(
        self,
        console: Console | None = None,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._every_s, self._clock = every_s, clock
        self._bar: Bar | None = None
        self._stages: list[Stage] = []
        self._said = clock()
        self._speaking = threading.Lock()

    def note(self, text: str) -> None:
        with self._speaking:
            self._say(text)

    def _say(self, text: str) -> None:
        """Where nobody reads any more, the work goes on; rich would end the program."""
        self._said = self._clock()
        if self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)
            return
        with contextlib.suppress(OSError, ValueError):
            self.console.file.write(text + "\n")
            self.console.file.flush()

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        if self.console.is_terminal:
            with self._bars() as bar:
                task = bar.add_task(title, total=total or None, unit=unit)
                yield lambda count: bar.update(task, advance=count)
            return
        stage = Stage(title, unit, Pace(total, self._clock()))
        self._stages.append(stage)
        try:
            with self._heart(first=len(self._stages) == 1):
                yield lambda count: stage.pace.add(count, self._clock())
        finally:
            self._stages.remove(stage)
        self.note(stage.closing(self._clock()))

    @contextmanager
    def _bars(self) -> Iterator[Bar]:
        """The bars on the terminal: a stage inside another has its own below it."""
        if self._bar is not None:
            yield self._bar
            return
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=self.console, transient=False) as self._bar:
            try:
                yield self._bar
            finally:
                self._bar = None

    @contextmanager
    def _heart(self, *, first: bool) -> Iterator[None]:
        """Inside the block a thread tells from time to time how far the innermost stage is, also
        where that is in one long call; the outermost stage has it."""
        if not first:
            yield
            return
        over = threading.Event()
        beat = threading.Thread(target=self._tell, args=(over,), name="progress", daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()

    def _tell(self, over: threading.Event) -> None:
        while not over.wait(self.due_s()):
            self.tell()

    def due_s(self) -> float:
        """Seconds until the innermost stage has to say something."""
        now = self._clock()
        spoke = max([self._said, *(stage.pace.started for stage in self._stages[-1:])])
        return max(0.0, spoke + self._every_s - now)

    def tell(self) -> None:
        """Says how far the innermost stage is, if it is time to."""
        with self._speaking:
            for stage in self._stages[-1:]:  # taken at once: it may end meanwhile
                if self.due_s() <= 0:
                    self._say(stage.under_way(self._clock()))


class Stage:
    """A stage in words, as lines of a log tell it."""

    def __init__(self, title: str, unit: str, pace: Pace) -> None:
        self.title, self.unit, self.pace = title, unit, pace

    def under_way(self, now: float) -> str:
        """How far it is, for how long it has been, how fast it goes and how long it will take."""
        pace = self.pace
        told = [f"{self.title}: {self._count} {self.unit} in {lasting(now - pace.started)}"]
        if speed := pace.per_s(now):
            told.append(rate(speed, self.unit))
        if (left := pace.left_s(now)) is not None:
            told.append(f"{lasting(left)} left")
        return ", ".join(told)

    def closing(self, now: float) -> str:
        """What it came to."""
        seconds, done = now - self.pace.started, self.pace.done
        speed = f", {rate(done / seconds, self.unit)}" if done and seconds > 0 else ""
        return f"{self.title}: {self._count} {self.unit} in {seconds:.1f} s{speed}"

    @property
    def _count(self) -> str:
        done, total = self.pace.done, self.pace.total
        return f"{done:,} of {total:,}" if total else f"{done:,}"
