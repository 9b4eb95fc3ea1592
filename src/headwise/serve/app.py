"""The web application: routes, checks in front of them, and one form for all errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

import headwise
from headwise.methods.query.ranker import Ranker
from headwise.serve import shapes
from headwise.serve.limits import Body, RefusalError, Settings, check_key, parse_json
from headwise.serve.metrics import Measured, Metrics
from headwise.serve.work import READY, Job, MakeRanker, Ranking, Work

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
PATHS = frozenset((*RERANK_PATHS, "/health", "/metrics", "/v1/models", "/openapi.json"))
GONE = 499  # for the metrics only: nobody is left to read it
READING = 32  # bodies that may be read at a time beyond those that would fill the queue
KINDS = {404: "not_found", 405: "method_not_allowed"}


def make_app(ranker: Ranker | MakeRanker, settings: Settings | None = None) -> FastAPI:
    """A service over one ranker. Serve it with one process and one event loop: the model belongs to one thread.

    Args:
        ranker: The ranker, or what makes it; that is called in the service's thread, so that `/health` answers while a model
            loads. If it cannot be made the reason is in `app.state.work.failure`, and every request is refused.
        settings: Limits of the service.

    Returns:
        The application; its `state` holds `work`, `settings` and `metrics`.
    """
    settings = settings or Settings()
    make = (lambda: ranker) if isinstance(ranker, Ranker) else ranker
    metrics = Metrics()
    work = Work(make, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work.start()
        yield
        await asyncio.to_thread(work.close)

    # No pages for browsing: they would load scripts from other hosts.
    app = FastAPI(
        title="headwise serve",
        version=headwise.__version__,
        description=shapes.SCORES,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.work, app.state.settings, app.state.metrics, app.state.reading = work, settings, metrics, 0
    app.add_middleware(Measured, metrics=metrics, paths=PATHS)
    app.add_exception_handler(RefusalError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    for path in RERANK_PATHS:
        app.add_api_route(path, rerank, methods=["POST"], **_described(path))
    app.add_api_route("/health", health, methods=["GET"], summary="Is the service ready? 200 or 503; needs no key.")
    app.add_api_route("/metrics", metrics_page, methods=["GET"], summary="Counters for Prometheus.")
    app.add_api_route("/v1/models", models, methods=["GET"], summary="The model that is served, and its heads.")
    return app


async def rerank(request: Request) -> Response:
    """Order passages by relevance to a query."""
    state = request.app.state
    body = Body(request)
    try:
        check_key(request, state.settings.api_key)
        state.work.check()  # before the body is read: refusing must be cheap
        data = parse_json(request, await _read(body, request))
        asked = shapes.read_request(data, state.settings)
        found = await _ranked(request, asked)
    except RefusalError:
        await body.discard()
        raise
    except ClientDisconnect:
        return Response(status_code=GONE)
    if not all(map(math.isfinite, found.scores)):
        raise RefusalError(500, "not_finite", "the model gave scores that are no numbers; serve it with another --dtype")
    version = "2" if request.url.path.startswith("/v2") else "1"
    return JSONResponse(asked.answer(found.scores, found.tokens, state.work.ranker.model.name, version))


async def health(request: Request) -> Response:
    """200 when requests are taken, 503 before and after."""
    state = request.app.state.work.state
    return JSONResponse({"status": "ok" if state == READY else state}, 200 if state == READY else 503)


async def metrics_page(request: Request) -> Response:
    """Prometheus' text format."""
    check_key(request, request.app.state.settings.api_key)
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    """One entry in the form of model lists, with how the heads were chosen."""
    check_key(request, request.app.state.settings.api_key)
    ranker = request.app.state.work.ranker
    if ranker is None:
        raise RefusalError(503, request.app.state.work.state, "the model is not loaded", {"Retry-After": "5"})
    model, heads = ranker.model, ranker.heads
    entry = {"id": model.name, "object": "model", "owned_by": "headwise", "heads": len(heads), "chosen_by": heads.chosen_by}
    return JSONResponse({"object": "list", "data": [entry | {"max_context": model.positions}]})


async def _read(body: Body, request: Request) -> bytes:
    """The body. Refuses one that comes too slowly, and more at a time than memory is meant for."""
    state = request.app.state
    if state.reading >= state.settings.queue + READING:
        raise RefusalError(429, "queue_full", "too many requests are being read; try again in 1 s", {"Retry-After": "1"})
    state.reading += 1
    try:
        return await asyncio.wait_for(body.read(state.settings.max_body), state.settings.timeout)
    except TimeoutError as error:
        raise RefusalError(408, "body_too_slow", f"the body did not arrive in {state.settings.timeout:g} s") from error
    finally:
        state.reading -= 1


async def _ranked(request: Request, asked: shapes.RerankRequest) -> Ranking:
    """Wait for the model, but not longer than the client does, nor than the timeout."""
    work, timeout = request.app.state.work, request.app.state.settings.timeout
    job: Job = work.submit(asked.query, asked.passages)
    answer = asyncio.wrap_future(job.answer)
    gone = asyncio.ensure_future(_until_gone(request))
    either: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        work.drop(job, "gone" if gone.done() else "timeout")
        if gone.done():
            raise ClientDisconnect
        raise RefusalError(504, "timeout", f"no answer in {timeout:g} s; send fewer passages, or try again later")
    except asyncio.CancelledError:  # the service is stopping and has waited long enough
        work.drop(job, "cancelled")
        raise
    finally:
        gone.cancel()
        answer.cancel()  # whatever still comes is not asked for


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(status: int, kind: str, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers=headers)


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, RefusalError):
        raise error
    return _problem(error.status, error.kind, error.message, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    known = ", ".join(sorted(PATHS))
    message = f"there is no {request.method} here; try one of {known}" if error.status_code in KINDS else str(error.detail)
    return _problem(error.status_code, KINDS.get(error.status_code, "http_error"), message, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    """An error of ours. What exactly is in the log; clients are told nothing about the inside."""
    return _problem(500, "internal_error", "the service failed at this request; its log says why")


def _described(path: str) -> dict[str, Any]:
    """What OpenAPI says of a rerank path; bodies are read by hand, so FastAPI cannot know."""
    accepted = [kind.model_json_schema() for kind in (shapes.DocumentsRequest, shapes.TextsRequest)]
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": shapes.ErrorAnswer, "description": why}
        for status, why in {
            400: "no JSON",
            401: "key missing or wrong",
            408: "the body came too slowly",
            413: "over a limit",
            415: "not sent as JSON",
            422: "neither shape, or passages that cannot be ranked",
            429: "the queue is full; see Retry-After",
            503: "loading or stopping",
            504: "out of time",
        }.items()
    }
    return {
        "name": f"rerank {path}",
        "operation_id": path.strip("/").replace("/", "_"),
        "summary": "Order passages by relevance: documents as for Cohere and Jina, texts as for text-embeddings-inference.",
        "description": shapes.SCORES,
        "response_model": None,
        "responses": {200: {"model": shapes.DocumentsAnswer | list[shapes.Rank]}, **answers},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": accepted}}}}},
    }
