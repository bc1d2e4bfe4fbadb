"""Every family works or is refused in one line, as docs/families.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from families import table, zoo

pytestmark = pytest.mark.filterwarnings("ignore")
# One of each kind of difficulty: positions, layers' settings, layers shared or kept in several
# lists, two stacks, a decoder, blocks that are not counted.
QUICK = ["albert", "bart", "camembert", "funnel", "gpt2", "gpt_neo", "longformer", "xlm"]
SAID = table.cells_of(table.DOCS.read_text(encoding="utf-8"))


def found(family: str, column: str, root: Path) -> str:
    text = table.cell(table.place_of(family, root), column)
    assert "\n" not in text
    assert len(text) < 400
    return "works" if text == table.WORKS else "refused"


def test_the_page_has_every_family() -> None:
    assert sorted(SAID) == sorted(zoo.FAMILIES)
    assert len(SAID) >= 25
    assert all(set(cells) == set(table.TRIALS) for cells in SAID.values())


@pytest.mark.parametrize("column", table.QUICK)
@pytest.mark.parametrize("family", QUICK)
def test_a_family_does_what_the_page_says(family: str, column: str, tmp_path: Path) -> None:
    assert found(family, column, tmp_path) == SAID[family][column]


@pytest.mark.slow
@pytest.mark.parametrize("column", table.TRIALS)
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_every_family_does_what_the_page_says(family: str, column: str, tmp_path: Path) -> None:
    assert found(family, column, tmp_path) == SAID[family][column]


def test_a_refusal_is_on_the_page_with_its_reason() -> None:
    whole = dict.fromkeys(table.TRIALS, table.WORKS)
    text = table.page({"bert": whole, "odd": {**whole, "ONNX": "no such thing"}})
    assert "1. no such thing" in text
    assert table.cells_of(text) == {"bert": whole, "odd": {**whole, "ONNX": "refused"}}
