"""The server without models: who may ask, what is refused, and that no request is lost."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, cast

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from popularity.app import server
from popularity.app.answers import Answers, Variants
from popularity.app.bodies import MAX_BODY_BYTES, MAX_VALUES, Draft, Drafts, Question, WhatIf
from popularity.app.schema import CALLS, openapi
from popularity.core.errors import DataError

BODY = {"post": {"date": "2016-05-01", "title": "<b>a cat</b>"}}
Client = TestClient[Any, Any]


class StandIn:
    """Answers that say who computes them."""

    options: ClassVar[dict[str, Any]] = {"users": ["a"]}

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.running = self.most = 0

    def predict(self, question: Question) -> Variants:
        self.threads.add(threading.get_ident())
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.01)
        self.running -= 1
        if question.post.title == "bad":
            raise DataError("a bad title", expected="a good one")
        if question.post.title == "broken":
            raise RuntimeError("a secret")
        return Variants(float(question.post.title or 0) if question.post.title.isdigit() else 1.0, [])

    def what_if(self, body: WhatIf) -> Variants:
        return Variants(len(body.values), [])

    def rank(self, body: Drafts) -> Variants:
        return Variants(len(body.csv), [])

    def picture(self, pid: str) -> str | None:
        return "data:image/jpeg;base64,AAAA" if pid == "1" else None


def serve(use: Callable[[Client, StandIn], Awaitable[None]]) -> None:
    async def main() -> None:
        answers = StandIn()
        async with TestClient(TestServer(server.make_server(cast(Answers, answers)), host=server.HOST)) as client:
            await use(client, answers)

    asyncio.run(main())


async def post(client: Client, body: Any, path: str = "predict", **headers: str) -> ClientResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return await client.post(f"/api/{path}", data=data, headers=given)


def test_fifty_requests_at_once_lose_none_and_are_computed_one_by_one() -> None:
    async def use(client: Client, answers: StandIn) -> None:
        bodies = [{"post": {"date": "2016-05-01", "title": str(index)}} for index in range(50)]
        found = await asyncio.gather(*(post(client, body) for body in bodies))
        assert [(await one.json())["popularity"] for one in found] == list(range(50))
        assert (answers.most, len(answers.threads)) == (1, 1)

    serve(use)


def test_a_queue_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_WAITING", 5)

    async def use(client: Client, _: StandIn) -> None:
        found = await asyncio.gather(*(post(client, BODY) for _ in range(20)))
        assert {one.status for one in found} == {200, 503}
        assert (await post(client, BODY)).status == 200

    serve(use)


def test_foreign_pages_and_hosts_are_refused() -> None:
    async def use(client: Client, answers: StandIn) -> None:
        own = f"127.0.0.1:{client.port}"
        assert (await post(client, BODY, Origin=f"http://{own}", Sec_Fetch_Site="same-origin")).status == 200
        assert (await post(client, BODY, Host=f"localhost:{client.port}")).status == 200
        answers.threads.clear()
        for headers in (
            {"Host": "evil.example"},
            {"Host": f"evil.example:{client.port}"},
            {"Host": "127.0.0.1:1"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": f"https://{own}"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
        ):
            assert (await post(client, BODY, **headers)).status == 403, headers
        assert (await client.get("/", headers={"Host": "evil.example"})).status == 403
        for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
            assert (await post(client, BODY, Content_Type=kind)).status == 415
        assert not answers.threads

    serve(use)


def test_bodies_that_are_none_are_refused_in_a_sentence() -> None:
    async def use(client: Client, answers: StandIn) -> None:
        cases: list[tuple[Any, int, str]] = [
            (b"{broken", 400, "Invalid JSON"),
            (b"[" * 100_000, 400, "Invalid JSON"),
            (b'{"post": {"date": "\\ud800"}}', 400, "Invalid JSON"),
            ({}, 422, "post: Field required"),
            ({"post": {"title": "x"}}, 422, "post.date: Field required"),
            ({"post": {"date": "x", "image": "/etc/passwd"}}, 422, "post.image: Extra inputs are not permitted"),
            ({"post": {"date": "x", "pid": "1"}}, 422, "Extra inputs"),
            ({"post": {"date": ["x"]}}, 422, "post.date"),
            ({"post": {"date": "x", "title": "y" * 10_001}}, 422, "at most 10000 characters"),
            ({"post": {"date": "x", "title": "bad"}}, 422, "a bad title"),
            ({"post": {"date": "x", "title": "broken"}}, 500, "see its terminal"),
        ]
        for body, status, said in cases:
            found = await post(client, body)
            content = await found.json()
            assert (found.status, said in content["error"]) == (status, True), (content, said)
            assert "secret" not in content["error"]
        for values in (["0"] * (MAX_VALUES + 1), "0"):
            assert (await post(client, {**BODY, "what": "hours", "values": values}, "what-if")).status == 422
        assert (await post(client, {**BODY, "what": "files"}, "what-if")).status == 422
        assert (await post(client, BODY)).status == 200

    serve(use)


def test_a_body_of_a_gigabyte_is_not_read() -> None:
    async def use(client: Client, answers: StandIn) -> None:
        announced = await asyncio.open_connection(server.HOST, client.port)
        head = f"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
        announced[1].write(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
        assert b" 413 " in await announced[0].readline()
        announced[1].close()

        async def chunks() -> Any:
            for _ in range(MAX_BODY_BYTES // 2**20 + 2):
                yield b" " * 2**20

        found = await client.post("/api/predict", data=chunks(), headers={"Content-Type": "application/json"})
        assert found.status == 413
        assert not answers.threads

    serve(use)


def test_pages_pictures_and_headers() -> None:
    async def use(client: Client, _: StandIn) -> None:
        for path in server.PAGE:
            found = await client.get(path)
            assert found.status == 200
            text = await found.text()
            assert "https://" not in text  # nothing is fetched from elsewhere
            assert "innerHTML" not in text
            assert {name: found.headers[name] for name in server.HEADERS} == server.HEADERS
        assert await (await client.get("/api/options")).json() == StandIn.options
        assert (await client.get("/api/pictures/1")).content_type == "image/jpeg"
        for path in ("/api/pictures/2", "/api/pictures/..%2F..%2Fparams.yaml", "/../params.yaml", "/app.py"):
            assert (await client.get(path)).status == 404
        assert (await client.get("/api/predict")).status == 405

    serve(use)


def test_further_columns_are_fields_of_the_request() -> None:
    """A field of the form cannot be overwritten by a column of its name."""
    draft = Draft(date="2016-05-01", title="a", columns={"Price (EUR)": "9.5", "title": "b", "empty": ""})
    assert draft.request().fields == {"Price (EUR)": "9.5", "date": "2016-05-01", "title": "a"}


def test_the_schema_names_every_call_and_type() -> None:
    document = openapi()
    assert list(document["paths"]) == [f"/api/{name}" for name in CALLS]
    text = json.dumps(document)
    assert all(f'"#/components/schemas/{kind.__name__}"' in text for _, *kinds in CALLS.values() for kind in kinds)
    names = {reference.split('"')[0] for reference in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])
    assert document["components"]["schemas"]["Draft"]["additionalProperties"] is False
