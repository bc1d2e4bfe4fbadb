"""Progress that remembers what was reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stillhouse.core.progress import Advance


@dataclass
class Counting:
    """`found`: of each stage that ended, its title, its total and how much was reported."""

    found: list[tuple[str, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        counts: list[int] = []
        yield counts.append
        self.found.append((title, total, sum(counts)))

    @property
    def titles(self) -> list[str]:
        return [title for title, _, _ in self.found]

    @property
    def unfinished(self) -> list[tuple[str, int, int]]:
        """Stages that ended at another count than they promised; total 0 promises nothing."""
        return [(title, total, done) for title, total, done in self.found if total not in (0, done)]
