"""The guard in front of somebody else's service."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from guarded import Made
from starlette.testclient import TestClient

from stillhouse.core.errors import RunError
from stillhouse.guard import middleware
from stillhouse.guard.asgi import AWAY
from stillhouse.guard.database import Unreachable
from stillhouse.guard.guard import Guard
from stillhouse.guard.middleware import GuardMiddleware
from stillhouse.guard.model import About
from stillhouse.guard.purses import Denied
from stillhouse.guard.settings import Outside

OUTSIDE = Outside(path="/score", texts="inputs[].body", answers="results", probabilities="scores",
                  label="best", text="input")  # fmt: skip
MARKED = {"marks": {"rate": 1.0}}


def foreign() -> FastAPI:
    """A service that knows nothing of us."""
    app = FastAPI()

    @app.post("/score")
    async def score(request: Request) -> Any:
        body = await request.json()
        texts = [i["body"] for i in body.get("inputs", [])] or [body["input"]]
        if texts == ["fail"]:
            return JSONResponse({"oops": 1}, 418)
        if texts == ["strange"]:
            return {"other": 1}
        one = {"best": "positive", "scores": {"negative": 0.2, "positive": 0.8}, "id": 7}
        headers = {"etag": "of-the-truth", "x-own": "kept"}
        return JSONResponse({"results": [one for _ in texts], "took": 3}, headers=headers)

    @app.get("/other")
    async def other() -> str:
        return "as before"

    return app


def client(guard: Guard, outside: Outside = OUTSIDE) -> tuple[TestClient, dict[str, str]]:
    found = TestClient(GuardMiddleware(foreign(), guard, outside))
    return found, {"Authorization": f"Bearer {guard.registry.create_client('ann')[1]}"}


def test_answers_are_marked_and_the_rest_is_as_it_was(make: Made) -> None:
    asked, key = client(make(**MARKED))
    body = {"inputs": [{"body": "a film"}, {"body": "a book"}]}
    found = asked.post("/score", json=body, headers=key).json()
    wrong = {"best": "negative", "scores": {"negative": 0.8, "positive": 0.2}, "id": 7}
    assert found == {"results": [wrong, wrong], "took": 3}
    assert asked.get("/other").json() == "as before"


def test_headers_of_the_true_body_do_not_leave(make: Made) -> None:
    asked, key = client(make(**MARKED))
    found = asked.post("/score", json={"input": "a film"}, headers=key)
    assert "etag" not in found.headers
    assert found.headers["x-own"] == "kept"


def test_a_slash_more_is_guarded_too(make: Made) -> None:
    asked, _ = client(make(**MARKED))
    assert asked.post("/score/", json={"input": "a film"}).status_code == 401


def test_one_question(make: Made) -> None:
    asked, key = client(make(marks={"rate": 0.0, "most": 0.0}))
    found = asked.post("/score", json={"input": "a film"}, headers=key).json()
    assert found["results"][0]["best"] == "positive"


def test_label_only_takes_the_probabilities_away(make: Made) -> None:
    asked, key = client(make(shows="label", marks={"rate": 0.0, "most": 0.0}))
    found = asked.post("/score", json={"input": "a film"}, headers=key).json()
    assert found["results"] == [{"best": "positive", "id": 7}]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"input": "fail"}, 418), ({"input": "strange"}, 502), ({"input": 3}, 422), ({}, 422),
     ({"inputs": [{"body": None}]}, 422)],
)  # fmt: skip
def test_what_does_not_fit(body: Any, status: int, make: Made) -> None:
    guard = make(limits={"queries": 1})
    asked, key = client(guard)
    for _ in range(3):  # not charged, or the budget of one were spent
        assert asked.post("/score", json=body, headers=key).status_code == status
    assert asked.post("/score", json={"input": "a film"}, headers=key).status_code == 200
    assert asked.post("/score", json={"input": "a book"}, headers=key).status_code == 402


def test_no_key(make: Made) -> None:
    asked, _ = client(make())
    assert asked.post("/score", json={"input": "a"}).status_code == 401


@pytest.mark.parametrize(("failing", "status"), [("closed", 503), ("open", 200)])
def test_the_registry_away(
    failing: str, status: int, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = make(**MARKED)
    asked, key = client(guard, OUTSIDE.model_copy(update={"failing": failing}))

    def away() -> Any:
        raise RunError("away")

    monkeypatch.setattr(guard.registry, "writing", away)
    found = asked.post("/score", json={"input": "a film"}, headers=key)
    assert found.status_code == status
    if status == 200:
        assert found.json()["results"][0]["best"] == "positive"
    monkeypatch.undo()


def test_spans(make: Made) -> None:
    app = FastAPI()

    @app.post("/ask")
    async def ask(request: Request) -> dict[str, str]:
        await asyncio.sleep(0)
        return {"answer": "Ann Lee"}

    guard = make(about=About("m", "reader", "span"), **MARKED)
    outside = Outside(path="/ask", text="question", pair="context", answer="answer")
    found = TestClient(GuardMiddleware(app, guard, outside))
    key = {"X-API-Key": guard.registry.create_client("ann")[1]}
    body = {"question": "Who?", "context": "It was Ann Lee in Bath"}
    assert found.post("/ask", json=body, headers=key).json()["answer"] in (
        "It",
        "was",
        "in",
        "Bath",
    )


def plain(answer: bytes, kind: str = "application/json") -> FastAPI:
    """A service that always says this."""
    app = FastAPI()

    @app.post("/score")
    async def score(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type=kind)

    return app


ONE = b'"results": [{"scores": {"negative": 0.2, "positive": 0.8}, "best": "positive"}]'
UNMARKED = {"marks": {"rate": 0.0, "most": 0.0}}


def around(app: FastAPI, guard: Guard) -> tuple[TestClient, dict[str, str]]:
    key = {"Authorization": f"Bearer {guard.registry.create_client('ann')[1]}"}
    return TestClient(GuardMiddleware(app, guard, OUTSIDE), raise_server_exceptions=False), key


@pytest.mark.parametrize(
    "body", [b"[" * 3000 + b"]" * 3000, b"[" * 100_000, b"hi", b"\xff", b"", b'{"input": "\xe9"}']
)
def test_requests_that_are_no_json(body: bytes, make: Made) -> None:
    asked, key = around(plain(b"{" + ONE + b"}"), make())
    found = asked.post("/score", content=body, headers=key)
    assert (found.status_code, found.json()) == (422, {"error": "the request is not JSON"})
    assert asked.post("/score", content=body).status_code == 401  # keys come first


@pytest.mark.parametrize(
    "rest",
    [b'"id": "\\ud83d"', b'"\\udc00": 1', b'"took": 1e400, "less": -1e999',
     b'"n": ' + b"9" * 6000, b'"seed": 123456789012345678901234567890', '"é": "中文"'.encode(),
     b'"trace": ' + b"[" * 300 + b"]" * 300],
)  # fmt: skip
@pytest.mark.parametrize("kind", [{}, MARKED["marks"]])
def test_the_rest_of_an_answer_stays_as_it_was(
    rest: bytes, kind: dict[str, float], make: Made
) -> None:
    guard = make(marks={"rate": 0.0, "most": 0.0, **kind})
    asked, key = around(plain(b"{" + ONE + b", " + rest + b"}"), guard)
    found = asked.post("/score", json={"input": "a film"}, headers=key)
    assert found.status_code == 200
    number = {"parse_float": str, "parse_int": str}  # as they are written
    read = json.loads(found.content, **number)
    assert read.pop("results")[0]["best"] == ("negative" if kind else "positive")
    assert read == json.loads(b"{" + rest + b"}", **number)


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b"[" * 3000 + b"]" * 3000, b'{"results": []}', b'{"results": [{"best": "new"}]}',
     b'{"results": [{"scores": {"negative": NaN, "positive": 0.8}, "best": "positive"}]}',
     b'{"results": [{"scores": {"negative": 1e400, "positive": 0.8}}]}', b'{"results": "x"}'],
)  # fmt: skip
def test_a_services_own_faults_are_not_its_clients(answer: bytes, make: Made) -> None:
    guard = make(**MARKED, limits={"queries": 1})
    asked, key = around(plain(answer), guard)
    for _ in range(2):  # nobody is charged for them
        found = asked.post("/score", json={"input": "a film"}, headers=key)
        assert found.status_code == 502
        assert "the guarded service's answer" in found.json()["error"]
    guard.flush()
    assert guard.registry.evidence() == []


def test_no_mark_is_committed_for_an_answer_that_can_not_be_written(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = make(**MARKED)
    asked, key = around(plain(b"{" + ONE + b"}"), guard)

    def fail(value: object) -> bytes:
        raise RecursionError

    monkeypatch.setattr(middleware, "write_json", fail)
    assert asked.post("/score", json={"input": "a film"}, headers=key).status_code == 502
    guard.flush()
    assert guard.registry.evidence() == []


def test_a_body_in_another_encoding_is_told_as_what_it_became(make: Made) -> None:
    body = ("{" + ONE.decode() + "}").encode("utf-16")
    asked, key = around(plain(body, "application/json; charset=utf-16"), make(**UNMARKED))
    found = asked.post("/score", json={"input": "a film"}, headers=key)
    assert found.headers["content-type"] == "application/json"
    assert json.loads(found.content)["results"][0]["best"] == "positive"


def test_waits_are_rounded_up(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make()
    asked, key = client(guard)

    def slow(*_: object) -> None:
        raise Denied("too fast", status=429, retry_s=1.43)

    monkeypatch.setattr(guard, "admit", slow)
    found = asked.post("/score", json={"input": "a film"}, headers=key)
    assert (found.status_code, found.headers["retry-after"]) == (429, "2")


def test_strangers_are_not_told_where_the_registry_is(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = make()
    asked, key = client(guard)

    def away(*_: object) -> None:
        raise Unreachable("the registry payroll can't be reached: nothing answers there")

    monkeypatch.setattr(guard, "admit", away)
    found = asked.post("/score", json={"input": "a film"}, headers=key)
    assert (found.status_code, found.json()) == (503, {"error": AWAY})
