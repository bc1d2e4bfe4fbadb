"""How long work tells where it is; silence by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

Advance = Callable[[int], None]


@runtime_checkable
class Progress(Protocol):
    def note(self, text: str) -> None: ...
    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]: ...


class Silent:
    """Says nothing."""

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        yield lambda count: None
