"""The page in a real browser: nothing fetched, nothing complained about, nothing cut off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from stillhouse.report import render

from . import others
from .runs import make_record, write
from .staged import DISTIL, FINE_TUNE, PRETRAIN, similarity, stage_lines, staged

CHROMIUM = os.environ.get("STILLHOUSE_CHROMIUM") or shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VIEWS = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]
Scheme = Literal["light", "dark"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; set STILLHOUSE_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


def luminance(page: Page, selector: str, field: str) -> float:
    """0 black to 1 white, of the colour the browser computed."""
    script = f"getComputedStyle(document.querySelector({selector!r})).{field}"
    colour: str = page.evaluate(script)
    red, green, blue = (int(part) for part in colour[4:-1].split(","))
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, one of two, the second with very long words, one of three stages, and the
    flows' own."""
    root = tmp_path_factory.mktemp("runs")
    long = make_record(warnings=["w" * 300], sentence="Pneumonoultramicroscopic " * 6)
    runs = [write(root, "a"), write(root, "b" * 80, record=long)]
    word = "w" * 120
    stages = [PRETRAIN, DISTIL.model_copy(update={"name": word, "data": word}), FINE_TUNE]
    record = staged(stages=stages, similarity=similarity(7, 25), diagnosis=[word * 3])
    inside = write(root, "c", record=record, lines=stage_lines(stages))
    return {
        "one": render(runs[:1], root / "one.html"),
        "several": render(runs, root / "several.html"),
        "inside": render([inside], root / "inside.html"),
        **{
            name: render([others.write(root, name, record)], root / f"{name}.html")
            for name, record in (
                ("tickets", others.tickets()),
                ("transfer", others.transfer()),
                ("audit", others.audit()),
            )
        },
    }


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
@pytest.mark.parametrize("which", ["one", "several", "inside", "tickets", "transfer", "audit"])
def test_page_in_a_browser(
    browser: Browser, pages: dict[str, Path], scheme: Scheme, width: int, which: str
) -> None:
    path = pages[which]
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    complaints, requests = watch(page)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    assert requests == [path.as_uri()]
    assert (luminance(page, "html", "backgroundColor") < 0.2) == (scheme == "dark")
    assert (luminance(page, "figure text", "fill") > 0.5) == (scheme == "dark")
    page.close()


def watch(page: Page) -> tuple[list[str], list[str]]:
    """What the page complains about, and what it asks for; both fill as it loads."""
    complaints: list[str] = []
    requests: list[str] = []

    def requested(request: Request) -> None:
        if not request.url.startswith("data:"):
            requests.append(request.url)

    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", requested)
    return complaints, requests


def test_dark_page_prints_on_white(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["one"].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(page, "html", "backgroundColor") > 0.9
    assert luminance(page, "h1", "color") < 0.2
    page.close()


@pytest.mark.parametrize("which", ["one", "several"])
def test_the_models_are_whole_on_a_phone(
    browser: Browser, pages: dict[str, Path], which: str
) -> None:
    """Every cell is on the screen, and says whose it is; nothing is scrolled sideways to."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages[which].as_uri())
    script = """[...document.querySelectorAll('.models tbody td:not(.empty)')].map(cell => {
        const box = cell.getBoundingClientRect();
        return [box.left >= 0 && box.right <= innerWidth && cell.scrollWidth <= box.width + 1,
                getComputedStyle(cell, '::before').content]; })"""
    found = page.evaluate(script)
    assert found
    assert all(inside for inside, _ in found)
    assert all(label not in ("none", '""') for _, label in found)
    page.close()
