"""Servers of these tests recover at once."""

from __future__ import annotations

import pytest

from stillhouse.extract import client


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
