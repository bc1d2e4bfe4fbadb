"""Documents reach the tokenizer whole, however long they are."""

from __future__ import annotations

import pytest

from stillhouse.data import documents


def test_pieces_of_a_long_line_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut before a space, which a byte-level tokenizer needs, or anywhere if there is none."""
    monkeypatch.setattr(documents, "CHARACTERS", 10)
    texts = ["the film was good", "x" * 25, "the" + "x" * 20, " " * 30 + "a", "short"]
    found = list(documents._pieces([("train", text) for text in texts]))
    ends = [i + 1 for i, (_, _, last) in enumerate(found) if last]
    for start, end, text in zip([0, *ends], ends, texts, strict=False):
        assert "".join(piece for _, piece, _ in found[start:end]) == text
    assert [piece for _, piece, _ in found[:2]] == ["the film", " was good"]
    assert max(len(piece) for _, piece, _ in found) == 10
