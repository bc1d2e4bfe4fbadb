"""The owner's page: who asks, what they cost and know, what was noticed. No script."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.report.environment import environment


@dataclass(frozen=True)
class ClientLine:
    """One client. hour, day: questions in the last; asked: different ones; copy: the share of the
    model's score that a copy from its questions would have; used: of the measured curve."""

    name: str
    state: Literal["active", "flagged", "revoked"]
    hour: int
    day: int
    charged: int
    asked: int
    most: int | None
    money: float
    most_money: float | None
    currency: str
    odd: int
    judged: int
    copy: float | None
    used: float | None
    marks: int
    controls: int


@dataclass(frozen=True)
class OwnerPage:
    """events: time, client, kind, detail; verdicts: time, suspect, sentence. Times in Unix
    seconds."""

    model: str
    task: str
    shows: str
    clients: Sequence[ClientLine]
    events: Sequence[tuple[float, str, str, str]]
    verdicts: Sequence[tuple[float, str, str]]
    on_flag: str
    trouble: str | None
    now: float

    @property
    def flagged(self) -> int:
        return sum(each.state == "flagged" for each in self.clients)

    @property
    def sentence(self) -> str:
        """The page's first line."""
        count = len(self.clients)
        whole = f"{count:,} {'client' if count == 1 else 'clients'}"
        if not self.flagged:
            return f"{whole}, none flagged"
        return f"{whole}, {self.flagged:,} flagged"


def when(moment: float) -> str:
    """A time as people read it, UTC."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def render_owner(page: OwnerPage) -> str:
    return environment().get_template("owner.html.j2").render(page=page, when=when)
