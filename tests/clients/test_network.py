"""The clients against a real server on a real socket and clock."""

import asyncio
import json
import socket
import threading

import pytest
import uvicorn

from demur.clients import ConnectionFailed, RetryPolicy, Timeout


class Service:
    """A small ASGI application; each test sets `respond`, which is awaited for the status, headers and body."""

    def __init__(self):
        self.seen = []
        self.respond = None
        self.drips = False

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append(headers)
        status, extra, content = await self.respond(len(self.seen), json.loads(body or b"null"), receive)
        fields = {"content-type": "application/json", "content-length": str(len(content)), **extra}
        raw = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        drops = [content[at : at + 1] for at in range(len(content))] if self.drips else [content]
        for drop in drops:
            await send({"type": "http.response.body", "body": drop, "more_body": True})
            await asyncio.sleep(0.05 if self.drips else 0)
        await send({"type": "http.response.body"})


@pytest.fixture
def service():
    """The application on a port of its own, in a thread; the socket listens before the server runs."""
    app = Service()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    app.url = "http://{}:{}".format(*listener.getsockname())
    yield app
    server.should_exit = True
    thread.join()


def at_once(**keywords):
    return RetryPolicy(base=0, **keywords)


async def test_an_answer_that_never_comes_ends_at_the_deadline(connect, service):
    gone = threading.Event()

    async def hang(count, body, receive):
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        return 200, {}, b""

    service.respond = hang
    with pytest.raises(Timeout):
        await connect(None, base_url=service.url)("decide", "x", task="t", deadline=0.2)
    assert await asyncio.to_thread(gone.wait, 10)  # the connection was closed, so that the server can stop its work
    assert [1 <= int(headers["x-demur-deadline-ms"]) <= 200 for headers in service.seen] == [True]


async def test_an_answer_that_drips_ends_at_the_deadline(connect, service):
    async def respond(count, body, receive):
        return 200, {}, b'{"version": "1"}'

    service.respond, service.drips = respond, True
    with pytest.raises(Timeout, match=r"no answer within 0\.2 s"):
        await connect(None, base_url=service.url, timeout=0.2)("version")


async def test_overload_passes(connect, service, answer):
    async def respond(count, body, receive):
        return (503, {"retry-after": "0"}, b"{}") if count < 3 else (200, {}, json.dumps(answer).encode())

    service.respond = respond
    result = await connect(None, base_url=service.url, retry=at_once())("decide", "x", task="t")
    assert result.decision == "billing"
    assert len(service.seen) == 3


async def test_a_connection_lost_half_way_is_made_again(connect, service, answer):
    async def respond(count, body, receive):
        content = json.dumps(answer).encode()
        return 200, {"content-length": str(len(content) + (count < 2))}, content

    service.respond = respond
    result = await connect(None, base_url=service.url, retry=at_once())("decide", "x", task="t")
    assert result.decision == "billing"
    assert len(service.seen) == 2


async def test_a_closed_port_is_no_connection(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    face = connect(None, base_url=f"http://127.0.0.1:{port}", retry=at_once(attempts=2))
    with pytest.raises(ConnectionFailed, match=f"POST http://127.0.0.1:{port}/decide"):
        await face("decide", "x", task="t")
    assert await face("ready") is False
    assert await face("healthy") is False


async def test_many_keep_order_and_their_limit(connect, service, answer):
    together, under_way, most = asyncio.Barrier(3), 0, 0

    async def respond(count, body, receive):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await together.wait()
        under_way -= 1
        items = [{"status": 200, "answer": {**answer, "decision": value}} for value in body["inputs"]]
        return 200, {}, json.dumps({"items": items}).encode()

    service.respond = respond
    inputs = [f"i{number}" for number in range(12)]
    items = await connect(None, base_url=service.url)("decide_many", inputs, task="t", batch_size=2, concurrency=3)
    assert [item.unwrap().decision for item in items] == inputs
    assert most == 3
