"""What the service says when it refuses: always `{"error": "..."}`, one sentence."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stillhouse.core.errors import DataError, RunError
from stillhouse.guard.asgi import for_strangers, retry_after
from stillhouse.guard.meters import Meters
from stillhouse.guard.purses import Denied

NO_JSON = "the body is no JSON in UTF-8"


def handle_errors(app: FastAPI, meters: Meters) -> None:
    """What no handler takes is `asgi.Safe`'s."""

    def said(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        meters.refused(status)
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(Denied)
    async def denied(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Denied)
        headers = {}
        if error.retry_s is not None:
            headers["retry-after"] = retry_after(error.retry_s)
        if error.status == 401:
            page = request.url.path == "/owner"
            headers["www-authenticate"] = 'Basic realm="owner"' if page else "Bearer"
        return said(error.status, str(error), headers)

    @app.exception_handler(DataError)
    async def unfit(_: Request, error: Exception) -> JSONResponse:
        return said(422, str(error))

    @app.exception_handler(RunError)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RunError)
        return said(503, for_strangers(error), {"retry-after": "5"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return said(422, NO_JSON)
        where = ".".join(map(str, first["loc"][1:]))
        message = str(first["msg"]).removeprefix("Value error, ")
        return said(422, f"{where}: {message}" if where else message)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path, method, headers = request.url.path, request.method, dict(error.headers or {})
        if error.status_code == 400:  # FastAPI's, of a body that it can't parse
            return said(422, NO_JSON, headers)
        if error.status_code == 404:
            return said(404, f"there is no {path}: see /docs", headers)
        if error.status_code == 405:
            return said(405, f"{path} does not take {method}: see /docs", headers)
        return said(error.status_code, HTTPStatus(error.status_code).phrase.lower(), headers)
