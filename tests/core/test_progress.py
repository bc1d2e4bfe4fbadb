"""Progress where there is no terminal: what a log gets, and when."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from stillhouse.core.console import Terminal
from stillhouse.core.pace import Pace, lasting, rate


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Log(io.StringIO):
    """A file that tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def terminal(log: Log, clock: Clock) -> Terminal:
    return Terminal(Console(file=log, width=200), clock=clock)


def after(clock: Clock, seconds: float, terminal: Terminal) -> None:
    clock.now += seconds
    terminal.tell()


def test_a_short_stage_is_one_line(terminal: Terminal, log: Log, clock: Clock) -> None:
    with terminal.stage("training", 100, "steps") as advance:
        after(clock, 29.9, terminal)
        advance(100)
    assert log.lines == ["training: 100 of 100 steps in 29.9 s, 3.3 steps/s"]


def test_a_long_stage_tells_how_far_it_is(terminal: Terminal, log: Log, clock: Clock) -> None:
    with terminal.stage("training", 2000, "steps") as advance:
        for _ in range(6):
            clock.now += 5
            advance(100)
        terminal.tell()
        assert log.lines == ["training: 600 of 2,000 steps in 30 s, 20 steps/s, 1 min 10 s left"]
        after(clock, 29, terminal)
        assert len(log.lines) == 1
        after(clock, 1, terminal)
        assert len(log.lines) == 2


def test_a_stage_that_reports_nothing_tells_for_how_long(
    terminal: Terminal, log: Log, clock: Clock
) -> None:
    with terminal.stage("comparing", 1, "records"):
        after(clock, 30, terminal)
        after(clock, 95, terminal)
    assert log.lines[:2] == [
        "comparing: 0 of 1 records in 30 s",
        "comparing: 0 of 1 records in 2 min 5 s",
    ]


def test_where_nobody_knows_the_total_no_time_left_is_told(
    terminal: Terminal, log: Log, clock: Clock
) -> None:
    with terminal.stage("reading", 0, "lines") as advance:
        clock.now += 30
        advance(90_000)
        terminal.tell()
    assert log.lines[0] == "reading: 90,000 lines in 30 s, 3,000 lines/s"


def test_what_is_said_otherwise_is_no_silence(terminal: Terminal, log: Log, clock: Clock) -> None:
    with terminal.stage("training", 10, "steps"):
        clock.now += 25
        terminal.note("a note")
        after(clock, 29, terminal)
        assert log.lines == ["a note"]
        after(clock, 1, terminal)
        assert log.lines == ["a note", "training: 0 of 10 steps in 55 s"]


def test_of_stages_inside_each_other_the_innermost_speaks(
    terminal: Terminal, log: Log, clock: Clock
) -> None:
    with terminal.stage("outer", 2, "parts"):
        after(clock, 20, terminal)
        with terminal.stage("inner", 3, "rows"):
            after(clock, 29, terminal)
            assert log.lines == []
            after(clock, 1, terminal)
            assert log.lines == ["inner: 0 of 3 rows in 30 s"]
        after(clock, 30, terminal)
    assert [line.split(" in ")[0] for line in log.lines] == [
        "inner: 0 of 3 rows", "inner: 0 of 3 rows", "outer: 0 of 2 parts", "outer: 0 of 2 parts",
    ]  # fmt: skip


def test_the_line_comes_by_itself_and_its_thread_ends_with_the_stage(log: Log) -> None:
    terminal = Terminal(Console(file=log, width=200), every_s=0.01)
    before = set(threading.enumerate())
    with terminal.stage("outer", 1, "parts"):
        with terminal.stage("loading", 1, "files"):
            assert log.written.wait(5)
            assert len(set(threading.enumerate()) - before) == 1
    assert set(threading.enumerate()) == before
    assert log.lines[0] == "loading: 0 of 1 files in 0 s"


def test_an_error_passes_and_leaves_no_thread(terminal: Terminal, log: Log) -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        with terminal.stage("outer", 1, "parts"), terminal.stage("inner", 1, "parts"):
            raise KeyboardInterrupt
    assert set(threading.enumerate()) == before
    assert log.lines == []
    with terminal.stage("again", 1, "parts"):
        pass
    assert [line.split(":")[0] for line in log.lines] == ["again"]


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])  # gone, or closed
def test_a_reader_that_is_gone_ends_no_work(error: type[Exception]) -> None:
    class Gone(Log):
        def write(self, text: str) -> int:
            super().write(text)
            raise error

    gone = Gone()
    terminal = Terminal(Console(file=gone, width=200), every_s=0.01)
    with terminal.stage("loading", 1, "files") as advance:
        assert gone.written.wait(5)
        advance(1)
    terminal.note("on it goes")
    assert not [each for each in threading.enumerate() if each.name == "progress"]


def test_bars_inside_each_other(log: Log) -> None:
    terminal = Terminal(Console(file=log, width=120, force_terminal=True))
    with terminal.stage("choosing", 1, "rounds") as choose:
        with terminal.stage("reading", 3, "rows") as read:
            read(3)
            assert terminal._bar is not None
            assert [task.description for task in terminal._bar.tasks] == ["choosing", "reading"]
        choose(1)
    with terminal.stage("asking", 1, "rows"):
        pass
    assert all(title in log.getvalue() for title in ("choosing", "reading", "3/3", "asking"))


def test_speed_is_that_of_the_recent_past() -> None:
    pace = Pace(10_000, started=0.0)
    for second in range(10, 601, 10):  # ten minutes at 1 a second
        pace.add(10, float(second))
    for second in range(601, 661):  # a minute at 20
        pace.add(20, float(second))
    assert pace.done == 1800
    assert pace.per_s(660.0) == pytest.approx(20.0)
    assert pace.left_s(660.0) == pytest.approx(8200 / 20)


def test_what_comes_in_lumps_is_as_fast_as_its_lumps() -> None:
    pace = Pace(100_000, started=0.0)
    assert pace.per_s(49.0) == 0.0
    assert pace.left_s(49.0) is None
    pace.add(10_000, 50.0)
    assert pace.per_s(50.0) == pace.per_s(90.0) == pytest.approx(200.0)
    assert pace.per_s(250.0) == pytest.approx(50.0)  # silent for four times as long
    assert pace.left_s(90.0) == pytest.approx(450.0)


def test_many_reports_are_few_moments() -> None:
    pace = Pace(0, started=0.0)
    for step in range(100_000):
        pace.add(1, step / 100)
    assert len(pace._moments) < 100
    assert pace.per_s(999.99) == pytest.approx(100.0, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3599.7, "1 h"),
        (3660, "1 h 1 min"), (7200, "2 h"), (90_000, "25 h"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


@pytest.mark.parametrize(
    ("speed", "words"),
    [(1234.4, "1,234 rows/s"), (10, "10 rows/s"), (1.44, "1.4 rows/s"), (0.05, "20.0 s each")],
)
def test_speeds_in_words(speed: float, words: str) -> None:
    assert rate(speed, "rows") == words
