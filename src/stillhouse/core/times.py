"""Moments as people write them."""

from __future__ import annotations

import datetime


def minute(moment: float) -> str:
    """A Unix time as 2026-05-01 13:20 UTC; what is beyond all calendars in seconds."""
    try:
        found = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{moment:g} s"
    return found.strftime("%Y-%m-%d %H:%M UTC")
