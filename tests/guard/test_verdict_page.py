"""The page of a verdict: what it says first, what it says of numbers, and that it fits a phone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from authority import needed
from trials import Case, case

from stillhouse.core.progress import Silent
from stillhouse.core.verdict_results import VerdictRecord
from stillhouse.guard import stamps as stamping
from stillhouse.guard.verify import run_verify
from stillhouse.report.html import own_page

CHROMIUM = os.environ.get("STILLHOUSE_CHROMIUM") or shutil.which("chromium")
pytestmark = needed


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        found = case(tmp_path_factory.mktemp("case"))
        patch.setattr(stamping, "public_roots", lambda: tuple(found.tsa.roots))
        found.registry.create_client("<b>bold</b> " + "long" * 30)
        found.ask("carl & sons", 0, 200)
        found.stamp()
        with found.thief() as suspect:
            run_verify(found.config(suspect, controls=[suspect]), found.registry, found.keys,
                       found.folder / "verdict", progress=Silent())  # fmt: skip
        yield found


@pytest.fixture
def page(tried: Case) -> str:
    return (tried.folder / "verdict" / "report.html").read_text()


def text_of(page: str) -> str:
    body = page[page.index("<main>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_what_it_rests_on_comes_first(page: str, tried: Case) -> None:
    record = VerdictRecord.open(tried.folder / "verdict", "verification")
    text = text_of(page)
    assert "is a copy of our model" in record.sentence
    assert text.index("is a copy") < text.index("What this rests on") < text.index("Who was tried")
    assert text.index("time stamp, 20") < text.index("Who was tried")
    assert "the owner&#39;s word" in page[: page.index("Who was tried")]


def test_it_is_the_records_page_to_the_last_byte(page: str, tried: Case) -> None:
    assert own_page(tried.folder / "verdict", "verify") == page


def test_dates_and_examples(page: str, tried: Case) -> None:
    text = text_of(page)
    for what in ("Marked and control questions were asked", "The last log head was sealed",
                 "was stamped by CN=Tiny Time", "The models were asked by the owner"):  # fmt: skip
        assert re.search(rf"{what}[^.]*?20\d\d-\d\d-\d\d \d\d:\d\d UTC", text), what
    kept = tried.snapshot.kept
    order = sorted(range(len(kept)), key=lambda i: (kept[i].time, i))
    first = next(kept[i] for i in order if kept[i].kind == "mark")
    example = text[text.index("Examples") :]
    example = example[example.index("Marked") : example.index("answers:") + 60]
    assert first.text in example
    assert f"True answer: {first.truth['label']}" in example
    assert f"Answer that was given: {first.target}" in example
    assert f"answers: {first.target} (the key's wrong" in example
    assert "Control ·" in text


def test_numbers_are_counted(page: str, tried: Case) -> None:
    kept = tried.snapshot.kept
    marks = sum(each.kind == "mark" for each in kept)
    assert f"here {marks:,} marks and {len(kept) - marks:,} controls" in text_of(page)
    assert "about ten times" not in page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; set STILLHOUSE_CHROMIUM")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_deciding_columns_are_seen(width: int, tried: Case, tmp_path: Path) -> None:
    """Nothing is wider than the screen, and no column is out of sight."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        shown = browser.new_page(viewport={"width": width, "height": 844})
        shown.goto((tried.folder / "verdict" / "report.html").as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        for label in ("Verdict", "Marks given", "Controls given", "p, adjusted"):
            cells = shown.locator(f'td[data-label="{label}"]')
            assert cells.count() >= 2
            for number in range(cells.count()):
                box = cells.nth(number).bounding_box()
                assert box is not None
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width + 0.5, label
        if out := os.environ.get("STILLHOUSE_SHOTS"):
            shown.screenshot(path=f"{out}/verdict-{width}.png", full_page=True)
        browser.close()
