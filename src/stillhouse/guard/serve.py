"""The service: a guarded model over HTTP.

A worker is one process with a model, a guard and an event loop; workers share the registry only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer

from stillhouse.core.audit_results import AuditRecord
from stillhouse.core.types import Example
from stillhouse.guard.asgi import Bounded, Safe, api_key
from stillhouse.guard.bill import Bill
from stillhouse.guard.errors import handle_errors
from stillhouse.guard.exposure import Curve
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import read_keys
from stillhouse.guard.marking import shown
from stillhouse.guard.membership import Head
from stillhouse.guard.meters import Meters
from stillhouse.guard.model import ServedModel
from stillhouse.guard.owner import owner_page
from stillhouse.guard.purses import Denied
from stillhouse.guard.registry import ClientRow, Registry
from stillhouse.guard.requests import ASKED, Beside, asked, describe_questions, while_there
from stillhouse.guard.scheduler import Scheduler
from stillhouse.guard.settings import GuardConfig, ServeConfig
from stillhouse.guard.stopping import stopping
from stillhouse.guard.wire import ERRORS, Answer, Answers, Usage
from stillhouse.report.service import render_service


class Worker:
    """What a process serves with."""

    def __init__(self, config: ServeConfig) -> None:
        head = Head.load(Path(config.membership)) if config.membership else None
        self.model = ServedModel(
            config.model, head=head if config.guarded else None, max_length=config.max_length,
            precision=config.precision, trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
        curve = None
        if config.curve:
            curve = Curve.of(AuditRecord.open(Path(config.curve), "audit"))
        self.guard: Guard | None = None
        if config.guarded:
            about = self.model.about
            keys = read_keys(Path(config.key) if config.key else None)
            self.guard = Guard(
                config.guard, keys, Registry(config.registry), about, curve=curve,
                reads=self.model.reads,
            )  # fmt: skip
        self.meters = Meters()


def create_app(config: ServeConfig) -> FastAPI:
    """The service of one worker. Raises UsageError, ModelError."""
    if config.threads:
        torch.set_num_threads(config.threads)
    worker = Worker(config)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        scheduler = app.state.scheduler = Scheduler(
            worker.model, config.queue, rows=config.rows, tokens=config.guard.sizes.tokens
        )
        beside = app.state.beside = Beside()
        with stopping(scheduler):
            yield
            beside.close()
            await asyncio.to_thread(scheduler.close)
            if worker.guard is not None:
                await asyncio.to_thread(worker.guard.close)

    app = FastAPI(
        title="Stillhouse", version=version("stillhouse"), lifespan=living,
        description=f"{worker.model.name}, behind its guard.",
        docs_url=None, redoc_url=None,  # which load a script from elsewhere
        redirect_slashes=False,  # to http://, with the key, where a proxy does TLS
    )  # fmt: skip
    app.add_middleware(Bounded, most=config.body_bytes)
    app.add_middleware(Safe, failed=lambda: worker.meters.refused(500))
    describe_questions(app)
    handle_errors(app, worker.meters)
    _add_predict(app, worker, config.guard.sizes.questions)
    _add_owner(app, worker)
    _add_docs(app)
    return app


def _add_predict(app: FastAPI, worker: Worker, most: int) -> None:
    guard, model, meters = worker.guard, worker.model, worker.meters

    async def asking(request: Request) -> ClientRow | None:
        return None if guard is None else await who(request, guard, "client")

    def check(examples: Sequence[Example]) -> None:
        if guard is not None:
            guard.check(examples)
        model.accepts(examples)

    known = Depends(asking)
    bearer = [Depends(HTTPBearer(auto_error=False, description="an API key: sh_..."))]

    @app.post(
        "/v1/predict", response_model_exclude_none=True, responses=ERRORS, dependencies=bearer,
        openapi_extra=ASKED,
    )  # fmt: skip
    async def predict(request: Request, client: ClientRow | None = known) -> Answers:
        """Answers to one question or many."""
        scheduler: Scheduler = request.app.state.scheduler
        beside: Beside = request.app.state.beside
        peer = "" if request.client is None else request.client.host
        name = peer if client is None else client.id
        examples = await asked(request, check, beside=beside, client=name, most=most)
        with meters.timed():
            if guard is None or client is None:
                view = GuardConfig().view(model.task)
                truths = await while_there(request, scheduler.ask(name, examples))
                return Answers(answers=[Answer(**shown(t, view, model.choices)) for t in truths])
            bill = Bill(guard, client.id, examples)
            try:
                if not bill.admit_now():
                    await asyncio.to_thread(bill.admit)
                answered = scheduler.ask(
                    client.id, examples,
                    charge=bill.admit_tokens_now, charge_later=bill.admit_tokens,
                )  # fmt: skip
                truths = await while_there(request, answered)
                size = sum(len(each.text) + len(each.pair or "") for each in examples)
                finished = await beside.do(
                    client.id, size, partial(guard.finish, client.id, examples, truths)
                )
                answers = await guard.settle_beside(finished)
            except BaseException:
                bill.refund()
                raise
            meters.answered(guard.questions)
            return Answers(answers=[Answer(**each) for each in answers])

    @app.get("/v1/usage", responses={k: ERRORS[k] for k in (401, 403, 503)}, dependencies=bearer)
    async def usage(client: ClientRow | None = known) -> Usage:
        """What the key's client was charged."""
        if guard is None or client is None:
            return Usage(questions=0, tokens=0, money=0.0, currency="$")
        row = await asyncio.to_thread(guard.registry.client, client.id)
        tariff = guard.config.tariff
        return Usage(
            questions=row.charged, tokens=row.token_charge, money=tariff.price(row.units),
            currency=tariff.currency,
        )  # fmt: skip

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the service can answer and write down what it must."""
        trouble = None if guard is None else guard.trouble
        said = {"status": "ok" if trouble is None else "degraded", "model": model.name}
        return JSONResponse(said, 200 if trouble is None else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Prometheus text, of all workers."""
        return PlainTextResponse(meters.text(), media_type=meters.media_type)


def _add_owner(app: FastAPI, worker: Worker) -> None:
    guard = worker.guard

    @app.get("/owner", response_class=HTMLResponse, include_in_schema=False)
    async def owner(request: Request) -> HTMLResponse:
        """The owner's page."""
        if guard is None:
            raise Denied("this service has no guard", status=404)
        await who(request, guard, "owner")
        page = await asyncio.to_thread(owner_page, guard)
        return HTMLResponse(page)


def _add_docs(app: FastAPI) -> None:
    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        """How to ask, from the description that programs read at /openapi.json."""
        return HTMLResponse(render_service(app.openapi()))


async def who(request: Request, guard: Guard, role: Literal["client", "owner"]) -> ClientRow:
    """Whose key a request has. Raises Denied."""
    key = api_key(request.headers.raw, password=True)
    if key is None:
        raise Denied("give an API key: Authorization: Bearer sh_...", status=401)
    found = guard.who(key) if guard.knows(key) else await asyncio.to_thread(guard.who, key)
    if found is None:
        raise Denied("this API key is not valid", status=401)
    if found.role != role:
        raise Denied(f"this is not for a key of the role {found.role}", status=403)
    return found
