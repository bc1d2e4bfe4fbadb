"""The service in this process: what clients and the owner get, and are refused."""

from __future__ import annotations

import base64
import gzip
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guarded import known_keys
from starlette.testclient import TestClient

import tiny
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.guard.asgi import SAFE
from stillhouse.guard.model import ServedModel
from stillhouse.guard.registry import Registry
from stillhouse.guard.serve import create_app
from stillhouse.guard.settings import ServeConfig


class Service:
    """A service and its registry."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.url = f"sqlite:///{folder / 'registry.db'}"
        known_keys(folder / "owner.key")
        values = {"model": str(folder.parent / "model"), "registry": self.url, "threads": 1,
                  "key": str(folder / "owner.key"), **changes}  # fmt: skip
        self.registry = Registry(self.url)
        self.registry.upgrade()
        self.client = TestClient(
            create_app(parse(ServeConfig, values)), raise_server_exceptions=False
        )

    def key(self, name: str, **settings: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.registry.create_client(name, **settings)[1]}"}

    def __enter__(self) -> Service:
        self.client.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.__exit__(None, None, None)
        self.registry.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("service")
    tiny.save(root / "model", seed=3)
    return root


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    with Service(model / "plain", guard={"sizes": {"questions": 8}}, body_bytes=20_000) as found:
        yield found


@pytest.fixture(scope="module")
def ann(service: Service) -> dict[str, str]:
    return service.key("ann")


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"text": "a good film"}, 1),
        ({"text": "a good film", "pair": "the book"}, 1),
        ({"texts": ["a film", "a book"]}, 2),
        ({"texts": ["a film", "a book"], "pairs": ["we", None]}, 2),
    ],
)
def test_questions_are_answered(
    body: dict[str, Any], count: int, service: Service, ann: dict[str, str]
) -> None:
    found = service.client.post("/v1/predict", json=body, headers=ann)
    assert found.status_code == 200
    answers = found.json()["answers"]
    assert len(answers) == count
    for each in answers:
        assert each["label"] in tiny.SENTIMENT
        assert sum(each["probabilities"].values()) == pytest.approx(1)
        assert each.keys() == {"label", "probabilities"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "give text, or texts"),
        ({"text": "a", "texts": ["a"]}, "give text, or texts"),
        ({"texts": ["a"], "pair": "b"}, "pairs, not pair"),
        ({"texts": ["a"], "pairs": ["b", "c"]}, "as many as texts"),
        ({"texts": []}, "no question"),
        ({"texts": ["a"] * 9}, "9 questions"),
        ({"text": "a\u0000b"}, "no text"),
        ({"text": 3}, "text"),
        ({"other": 1}, "other"),
        ([], ""),
    ],
)
def test_what_is_no_question(body: Any, said: str, service: Service, ann: dict[str, str]) -> None:
    found = service.client.post("/v1/predict", json=body, headers=ann)
    assert found.status_code == 422
    assert said in found.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"text": "\xff"}', b"null", b'"x"',
                                  b'{"text": "\\ud800"}', b"[" * 5000])  # fmt: skip
def test_malformed_bodies(body: bytes, service: Service, ann: dict[str, str]) -> None:
    headers = ann | {"content-type": "application/json"}
    found = service.client.post("/v1/predict", content=body, headers=headers)
    assert found.status_code == 422
    assert found.json().keys() == {"error"}


JSON_ = {"content-type": "application/json"}
QUESTION = b'{"text": "a film"}'


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "said"),
    [
        ("POST", "/v1/predict", gzip.compress(QUESTION), JSON_, 422, "no JSON"),
        ("POST", "/v1/predict", gzip.compress(QUESTION), JSON_ | {"content-encoding": "gzip"}, 415,
         "compressed"),
        ("POST", "/v1/predict", b'{"text": "caf\xe9"}', JSON_, 422, "no JSON"),
        ("POST", "/v1/predict", b'{"text": ' + b"9" * 6000 + b"}", JSON_, 422, ""),
        ("POST", "/v1/predict", QUESTION, {}, 415, "send Content-Type: application/json"),
        ("POST", "/v1/predict", QUESTION, {"content-type": "text/plain"}, 415, "Content-Type"),
        ("POST", "/v1/predict/", QUESTION, JSON_, 404, "there is no /v1/predict/"),
        ("GET", "/v1/predict", b"", {}, 405, "does not take GET"),
        ("GET", "/nowhere", b"", {}, 404, "there is no /nowhere"),
        ("GET", "/health", b"", {"x-much": "x" * 20_000}, 431, "headers"),
    ],
)  # fmt: skip
def test_every_refusal_has_one_form(
    method: str, path: str, body: bytes, headers: dict[str, str], status: int, said: str,
    service: Service, ann: dict[str, str],
) -> None:  # fmt: skip
    found = service.client.request(
        method, path, content=body, headers=ann | headers, follow_redirects=False
    )
    assert found.status_code == status
    assert found.json().keys() == {"error"}
    assert said in found.json()["error"]
    assert found.headers["content-type"] == "application/json"


def test_a_failure_has_the_same_form(
    service: Service, ann: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.guard.guard import Guard

    def fail(*_: object) -> None:
        raise KeyError("s3cret")

    monkeypatch.setattr(Guard, "check", fail)
    found = service.client.post("/v1/predict", json={"text": "a"}, headers=ann)
    assert found.status_code == 500
    assert found.json() == {"error": "the service failed: its owner's log says why"}
    assert found.headers["x-content-type-options"] == "nosniff"
    assert 'stillhouse_refused_total{status="500"}' in service.client.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/health", 200), ("GET", "/docs", 200), ("GET", "/openapi.json", 200),
     ("GET", "/nowhere", 404), ("POST", "/v1/predict", 415), ("GET", "/owner", 401)],
)  # fmt: skip
def test_every_response_has_safe_headers(
    method: str, path: str, status: int, service: Service
) -> None:
    found = service.client.request(method, path)
    assert found.status_code == status
    for name, value in SAFE.items():
        assert found.headers.get_list(name) == [value]


def test_a_key_beside_a_proxys_authorization(service: Service) -> None:
    _, secret = service.registry.create_client("behind a proxy")
    basic = base64.b64encode(b"proxy:pw").decode()
    ways: list[list[tuple[str, str]]] = [
        [("Authorization", f"Basic {basic}"), ("X-API-Key", secret)],
        [("Authorization", f"Basic {basic}"), ("Authorization", f"Bearer {secret}")],
        [("Authorization", f"Bearer\t{secret}")],
    ]
    for headers in ways:
        found = service.client.post("/v1/predict", json={"text": "a"}, headers=headers)
        assert found.status_code == 200


def test_the_docs_need_no_script_and_nothing_from_elsewhere(service: Service) -> None:
    found = service.client.get("/docs")
    assert found.status_code == 200
    assert "<script" not in found.text
    assert re.findall(r'(?:src|href)="([^"]*)"', found.text) == ["data:,", "openapi.json"]
    for said in ("POST /v1/predict", "GET /v1/usage", "a lovely film", "Retry-After", "texts"):
        assert said in found.text


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "1"), (0.4, "1"), (1.0, "1"), (1.43, "2"), (2.5, "3")]
)
def test_who_waits_as_long_as_retry_after_says_is_served(
    seconds: float, told: str, service: Service, ann: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from stillhouse.guard.guard import Guard
    from stillhouse.guard.purses import Denied

    def wait(*_: object) -> None:
        raise Denied("too fast", status=429, retry_s=seconds)

    monkeypatch.setattr(Guard, "check", wait)
    found = service.client.post("/v1/predict", json={"text": "a"}, headers=ann)
    assert (found.status_code, found.headers["retry-after"]) == (429, told)


def test_a_body_that_is_too_long(service: Service, ann: dict[str, str]) -> None:
    long = {"text": "x" * 30_000}
    assert service.client.post("/v1/predict", json=long, headers=ann).status_code == 413

    def parts() -> Iterator[bytes]:  # with no content-length
        for _ in range(40):
            yield b"x" * 1000

    headers = ann | {"content-type": "application/json"}
    found = service.client.post("/v1/predict", content=parts(), headers=headers)
    assert found.status_code == 413


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer nonsense"},
     {"Authorization": "Basic !!!"}, {"X-API-Key": "sh_000000000000_" + "0" * 64}],
)  # fmt: skip
def test_wrong_keys(headers: dict[str, str], service: Service) -> None:
    for found in (
        service.client.post("/v1/predict", json={"text": "a"}, headers=headers),
        service.client.get("/v1/usage", headers=headers),
        service.client.get("/owner", headers=headers),
    ):
        assert found.status_code == 401
        assert "www-authenticate" in found.headers


def test_a_revoked_key_is_refused_within_a_second(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.guard import guard

    key = service.key("leaving")
    assert service.client.post("/v1/predict", json={"text": "a"}, headers=key).status_code == 200
    service.registry.revoke("leaving")
    monkeypatch.setattr(guard, "FRESH_S", 0.0)
    assert service.client.post("/v1/predict", json={"text": "b"}, headers=key).status_code == 401


def test_roles(service: Service, ann: dict[str, str]) -> None:
    owner = service.key("owner", role="owner")
    assert service.client.get("/owner", headers=ann).status_code == 403
    assert service.client.post("/v1/predict", json={"text": "a"}, headers=owner).status_code == 403
    page = service.client.get("/owner", headers=owner)
    assert page.status_code == 200
    assert "ann" in page.text
    assert "script" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_owners_page_by_password(service: Service) -> None:
    _, secret = service.registry.create_client("by password", role="owner")
    basic = base64.b64encode(f"owner:{secret}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}"}
    assert service.client.get("/owner", headers=headers).status_code == 200
    asked = service.client.get("/owner")
    assert asked.headers["www-authenticate"].startswith("Basic")


def test_html_in_a_name_is_text_on_the_page(service: Service) -> None:
    service.key("<img src=x onerror=alert(1)>")
    owner = service.key("html", role="owner")
    assert "<img src=x" not in service.client.get("/owner", headers=owner).text


def test_a_budget_and_a_rate(service: Service) -> None:
    few = service.key("few", queries=3)
    assert (
        service.client.post("/v1/predict", json={"texts": ["a"] * 3}, headers=few).status_code
        == 200
    )
    spent = service.client.post("/v1/predict", json={"text": "a"}, headers=few)
    assert spent.status_code == 402
    assert "budget" in spent.json()["error"]
    slow = service.key("slow", per_s=0.1)
    assert service.client.post("/v1/predict", json={"text": "a"}, headers=slow).status_code == 200
    again = service.client.post("/v1/predict", json={"text": "b"}, headers=slow)
    assert again.status_code == 429
    assert 1 <= int(again.headers["retry-after"]) <= 10


def test_usage(service: Service) -> None:
    key = service.key("counted")
    service.client.post("/v1/predict", json={"texts": ["a", "b"]}, headers=key)
    found = service.client.get("/v1/usage", headers=key).json()
    assert 2 <= found["questions"] <= 66
    assert found["currency"] == "$"


def test_health_metrics_and_openapi(service: Service, ann: dict[str, str]) -> None:
    assert service.client.get("/health").json() == {"status": "ok", "model": "model"}
    service.client.post("/v1/predict", json={"text": "a"}, headers=ann)
    text = service.client.get("/metrics").text
    assert "stillhouse_questions_total" in text
    assert "stillhouse_request_seconds_bucket" in text
    assert "mark" not in text  # whoever looks between two questions would learn which was
    assert "odd" not in text
    schema = service.client.get("/openapi.json").json()
    assert schema["components"]["schemas"]["Question"]["examples"]
    assert "429" in schema["paths"]["/v1/predict"]["post"]["responses"]


def test_many_clients_at_once_get_their_own_answers(model: Path) -> None:
    texts = [text for text, _ in tiny.sentences(40, seed=5)]
    unmarked = {"marks": {"rate": 0.0, "most": 0.0}}
    found: dict[tuple[int, int], float] = {}

    def ask(who: int) -> None:
        for place, text in enumerate(texts):
            answer = service.client.post("/v1/predict", json={"text": text}, headers=keys[who])
            found[who, place] = answer.json()["answers"][0]["probabilities"]["positive"]

    with Service(model / "many", guard=unmarked, precision="float32") as service:
        keys = [service.key(f"many {n}") for n in range(4)]
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    alone = ServedModel(model / "model", precision="float32")
    expected = [float(alone.answers([Example(t)])[0].probabilities_K[1]) for t in texts]
    assert len(set(expected)) == 40
    for who in range(4):
        assert [found[who, i] for i in range(40)] == pytest.approx(expected, abs=1e-3)


def test_the_registry_away_is_503_and_no_charge(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.guard.asgi import AWAY
    from stillhouse.guard.database import Unreachable
    from stillhouse.guard.registry import Registry as Any_

    key = service.key("unlucky")

    def away(self: object) -> Any:
        raise Unreachable("the registry /srv/secret.db can't be reached: away")

    monkeypatch.setattr(Any_, "writing", away)
    found = service.client.post("/v1/predict", json={"text": "a"}, headers=key)
    assert found.status_code == 503
    assert found.json() == {"error": AWAY}


def test_unguarded(model: Path) -> None:
    with Service(model / "unguarded", guarded=False) as found:
        answer = found.client.post("/v1/predict", json={"text": "a good film"})
        assert answer.status_code == 200
        assert found.client.get("/owner").status_code == 404


def test_no_secret_is_in_registry_or_log(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with Service(model / "secrets", guard={"marks": {"rate": 1.0}}) as found:
        key = found.key("ann")
        found.client.post("/v1/predict", json={"text": "a good film"}, headers=key)
        found.client.post(
            "/v1/predict", json={"text": "a good film"}, headers={"X-API-Key": "sh_x"}
        )
        found.client.get("/health")
    folder = model / "secrets"
    secret = (folder / "owner.key").read_text().strip()
    from stillhouse.guard.keys import read_keys

    marking = read_keys(folder / "owner.key").marking
    held = b"".join(path.read_bytes() for path in folder.glob("registry.db*"))
    assert b"a good film" in held  # the mark's own text
    for hidden in (secret, marking.hex(), key["Authorization"].rpartition("_")[2]):
        assert hidden.encode() not in held
        assert hidden not in caplog.text
    assert bytes.fromhex(secret) not in held
    assert marking not in held
