"""The server: it listens on 127.0.0.1 alone, answers pages of its own host alone, and computes one answer at a time."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import asdict
from importlib.resources import files
from io import StringIO
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from popularity.app.answers import Answers
from popularity.app.bodies import MAX_BODY_BYTES
from popularity.app.schema import CALLS, openapi
from popularity.core.errors import PopularityError

logger = logging.getLogger(__name__)
T = TypeVar("T")

HOST = "127.0.0.1"
MAX_WAITING = 100  # requests, the one that is computed included
PAGE = {"/": ("app.html", "text/html"), "/app.css": ("app.css", "text/css"), "/app.js": ("app.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_server(answers: Answers) -> web.Application:
    """The application over `answers`; whoever runs it binds it to HOST."""
    worker = _Worker()
    server = web.Application(middlewares=[_guarded], client_max_size=MAX_BODY_BYTES)
    for path in PAGE:
        server.router.add_get(path, _page)
    calls: dict[str, Callable[[Any], Any]] = {
        "predict": answers.predict,
        "what-if": answers.what_if,
        "rank": answers.rank,
    }
    for name, compute in calls.items():
        server.router.add_post(f"/api/{name}", _answering(worker, CALLS[name][1], compute))

    async def options(_: web.Request) -> web.Response:
        return web.json_response(await worker.run(lambda: answers.options))

    async def schema(_: web.Request) -> web.Response:
        return web.json_response(openapi())

    async def picture(request: web.Request) -> web.Response:
        found = await worker.run(lambda: answers.picture(request.match_info["pid"]))
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=base64.b64decode(found.partition(",")[2]), content_type="image/jpeg")

    server.router.add_get("/api/options", options)
    server.router.add_get("/api/pictures/{pid}", picture)
    server.router.add_get("/schema", schema)
    return server


class _Worker:
    """One thread that computes: the models answer one call at a time, the others wait in order."""

    def __init__(self) -> None:
        self._thread, self._waiting = ThreadPoolExecutor(max_workers=1), 0

    async def run(self, compute: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise web.HTTPServiceUnavailable(text="too many requests wait: try again", headers={"Retry-After": "5"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _without_bars, compute)
        finally:
            self._waiting -= 1


def _without_bars(compute: Callable[[], T]) -> T:
    with redirect_stderr(StringIO()):  # bars of progress; the log has its own handle
        return compute()


def _answering(
    worker: _Worker, body: type[BaseModel], compute: Callable[[Any], Any]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that reads a `body` and returns what is computed of it."""

    async def handle(request: web.Request) -> web.Response:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
        question = body.model_validate_json(await request.read())
        return web.json_response(asdict(await worker.run(lambda: compute(question))))

    return handle


async def _page(request: web.Request) -> web.Response:
    name, kind = PAGE[request.path]
    text = files(__package__).joinpath("page", name).read_text(encoding="utf-8")
    if name == "app.css":
        text = files("popularity.report").joinpath("templates", "report.css").read_text(encoding="utf-8") + text
    return web.Response(text=text, content_type=kind, charset="utf-8")


@web.middleware
async def _guarded(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuses what no page of this server sends, and turns every error into JSON."""
    try:
        _refuse_others(request)
        response = await handler(request)
    except ValidationError as error:
        broken = any(each["type"] == "json_invalid" for each in error.errors())
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        response = web.json_response({"error": said}, status=400 if broken else 422)
    except PopularityError as error:
        response = web.json_response({"error": str(error)}, status=422)
    except web.HTTPException as error:
        said = error.text or error.reason
        response = web.json_response({"error": said}, status=error.status)
    except Exception:  # whatever it is, the next request gets its answer
        logger.exception("%s %s", request.method, request.path)
        response = web.json_response({"error": "an error of the server: see its terminal"}, status=500)
    response.headers.update(HEADERS)
    return response


def _refuse_others(request: web.Request) -> None:
    """Refuses a host name that a foreign page may have bound to 127.0.0.1, and requests of foreign pages."""
    port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
    own = [f"{name}:{port}" for name in (HOST, "localhost")]
    if request.host not in own:
        raise web.HTTPForbidden(text=f"host {request.host[:100]}: expected {' or '.join(own)}")
    origin = request.headers.get("Origin")
    foreign = request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
    if (origin is not None and origin not in [f"http://{name}" for name in own]) or (foreign and request.path != "/"):
        raise web.HTTPForbidden(text="a page of another host asks")
    if request.method == "POST" and request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text=f"{request.content_type[:100]}: expected application/json")
