"""Servers of these tests recover at once."""

from __future__ import annotations

import pytest

from stillhouse.extract import endpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.01)
