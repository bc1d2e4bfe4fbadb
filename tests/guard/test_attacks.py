"""Whatever the OpenAPI description allows, and what it doesn't: never an error of the service's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import schemathesis
from guarded import known_keys
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from processes import service
from schemathesis.generation import GenerationMode

import tiny
from stillhouse.guard.registry import Registry

pytestmark = pytest.mark.slow
EXAMPLES = 120


@dataclass
class Attacked:
    """A service on loopback."""

    client: httpx.Client
    registry: Registry
    url: str

    def key(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.registry.create_client(name)[1]}"}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    root = tmp_path_factory.mktemp("attacked")
    tiny.save(root / "model", seed=3)
    known_keys(root / "owner.key")
    url = f"sqlite:///{root / 'registry.db'}"
    registry = Registry(url)
    registry.upgrade()
    sizes = ("--set", "guard.sizes.questions=16")
    with (
        service(root / "model", url, root / "owner.key", root, *sizes) as running,
        httpx.Client(base_url=running.url, timeout=30) as client,
    ):
        yield Attacked(client, registry, running.url)
    registry.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/usage", "/health", "/metrics"])
def test_no_error_of_the_service(
    path: str, mode: GenerationMode, attacked: Attacked, api_key: dict[str, str]
) -> None:
    schema = schemathesis.openapi.from_url(f"{attacked.url}/openapi.json")
    (operation,) = schema[path].values()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def attack(case: schemathesis.Case) -> None:
        found = case.call(headers=api_key)
        assert found.status_code < 500, (case.body, found.text)

    with contextlib.suppress(Unsatisfiable):  # without parameters nothing can be called wrongly
        attack()


@pytest.fixture(scope="module")
def api_key(attacked: Attacked) -> dict[str, str]:
    return attacked.key("attacker")


HOSTILE = [
    "' OR '1'='1", "'; DROP TABLE queries; --", "<script>alert(1)</script>", "{{7*7}}", "%s%n",
    "../../etc/passwd", "\u202e\u0000", "a\u0300" * 500, "\U0001f600" * 100, "\\", '"',
    "\r\n\r\n", "x" * 40_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field(
    text: str, attacked: Attacked, api_key: dict[str, str]
) -> None:
    for body in ({"text": text}, {"text": "a", "pair": text}, {"texts": [text], "pairs": [text]},
                 {text: "a"}):  # fmt: skip
        assert attacked.client.post("/v1/predict", json=body, headers=api_key).status_code < 500
    for headers in ({"X-API-Key": text}, {"Authorization": f"Bearer {text}"}):
        try:
            raw = {k: v.encode("utf-8", "surrogatepass") for k, v in headers.items()}
            found = attacked.client.get("/owner", headers=raw)
        except (ValueError, httpx.LocalProtocolError):
            continue  # no HTTP client sends that
        assert found.status_code in (400, 401, 431)
    found = attacked.client.get("/owner", params={"q": text.encode("utf-8", "replace")})
    assert found.status_code == 401


def test_the_tables_are_still_there(attacked: Attacked, api_key: dict[str, str]) -> None:
    found = attacked.client.post("/v1/predict", json={"text": "a film"}, headers=api_key)
    assert found.status_code == 200
    assert len(attacked.registry.clients()) == 1


def test_other_paths_are_not_there(attacked: Attacked) -> None:
    for path in ("/", "/v1", "/owner/../v1/usage", "/registry.db", "/.env", "/v1/predict/../../x"):
        assert attacked.client.get(path).status_code in (401, 404, 405)


def test_the_key_is_not_in_the_package_of_a_request(attacked: Attacked, tmp_path: Path) -> None:
    """An owner's key does not answer questions, and a client's shows no page."""
    owner = attacked.registry.create_client("owner", role="owner")[1]
    ann = attacked.registry.create_client("ann")[1]
    page = attacked.client.get("/owner", headers={"X-API-Key": owner}).text
    for secret in (owner, ann, owner.rpartition("_")[2], ann.rpartition("_")[2]):
        assert secret not in page
