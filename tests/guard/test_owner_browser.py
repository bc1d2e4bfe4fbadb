"""The owner's page in a real browser, on a phone and on a desk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import httpx
import pytest
from guarded import known_keys
from playwright.sync_api import Browser, sync_playwright
from processes import service

import tiny
from report import others
from stillhouse.core.rundir import write_json
from stillhouse.guard.registry import Registry
from stillhouse.guard.tables import queries

CHROMIUM = os.environ.get("STILLHOUSE_CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; set STILLHOUSE_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service that answered 60 questions and flagged who asked: its address, the owner's key."""
    folder = tmp_path_factory.mktemp("owner")
    model = tiny.save(folder / "model", seed=3)
    known_keys(folder / "owner.key")
    url = f"sqlite:///{folder / 'registry.db'}"
    registry = Registry(url)
    registry.upgrade()
    _, owner = registry.create_client("the owner", role="owner")
    _, ann = registry.create_client("Ann's shop", queries=500, money=2.0)
    registry.create_client("<b>bold</b> " + "long" * 30)
    audit = others.audit().model_dump(mode="json", by_alias=True)
    write_json(folder / "audit" / "record.json", audit)
    with service(
        model, url, folder / "owner.key", folder, "--curve", str(folder / "audit"),
        "--set", "guard.marks.rate=0.5",
    ) as running:  # fmt: skip
        for number in range(12):
            body = {"texts": [f"film {number} {i}" for i in range(5)]}
            headers = {"Authorization": f"Bearer {ann}"}
            assert (
                httpx.post(f"{running.url}/v1/predict", json=body, headers=headers).status_code
                == 200
            )
        httpx.get(f"{running.url}/health")
        registry.flag("Ann's shop", "12 of 12 new questions are odd")
        refused = httpx.get(f"{running.url}/owner", headers={"Authorization": f"Bearer {ann}"})
        assert refused.status_code == 403
        until = time.monotonic() + 30
        while len(registry.rows(queries)) < 60 and time.monotonic() < until:
            time.sleep(0.01)  # they are written behind the answers
        yield running.url, owner
    registry.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_the_page(browser: Browser, shown: tuple[str, str], width: int, scheme: str) -> None:
    url, owner = shown
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme,  # pyright: ignore
        http_credentials={"username": "owner", "password": owner},
    )  # fmt: skip
    page = context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/owner")
    assert page.locator("h1").inner_text() == "2 clients, 1 flagged"
    shop = page.get_by_role("article", name="Ann's shop")
    assert "Flagged" in shop.inner_text()
    assert "60" in shop.inner_text()
    assert "of the score" in shop.inner_text()
    assert page.get_by_text("<b>bold</b>").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("script").count() == 0
    assert all(each.startswith((url, "data:")) for each in asked)
    assert problems == [], problems
    if shots := os.environ.get("STILLHOUSE_SHOTS"):
        page.screenshot(path=f"{shots}/owner-{width}.png", full_page=True)
    context.close()
