"""Memory that is kept is given back where it has piled up, and only there."""

from __future__ import annotations

import pytest

from stillhouse.core import memory

GIGABYTE = 1024 * memory.MEGABYTE


@pytest.mark.parametrize(
    ("held", "trims"),
    [([3.0, 3.1, 4.3], 0), ([3.0, 4.5, 3.1], 1), ([3.0, 2.0, 3.2, 2.1], 1), ([None, None], 0)],
)
def test_what_has_piled_up_is_given_back(
    held: list[float | None], trims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings of a process, one after a trim included."""
    readings = iter(held)

    def resident() -> int | None:
        found = next(readings)
        return None if found is None else round(found * GIGABYTE)

    trimmed: list[int] = []
    monkeypatch.setattr(memory, "resident", resident)
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(1))
    pieces = memory.Pieces()
    for _ in range((len(held) - trims) * memory.EVERY):
        pieces.step()
    assert len(trimmed) == trims
    assert list(readings) == []


def test_this_process_is_in_memory() -> None:
    held = memory.resident()
    assert held is None or held > 10 * memory.MEGABYTE
    memory.trim()
