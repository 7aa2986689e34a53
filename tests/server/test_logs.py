import asyncio
import contextlib
import gc
import json
import logging
import logging.config

import pytest

from demur.server.logs import JsonFormatter, logging_config

from .conftest import INLINE

SECRET = "the patient is called Rumpelstiltskin"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.written = []

    def emit(self, record):
        self.written.append(json.loads(self.format(record)))


@pytest.fixture
def lines():
    """All that our loggers write while the test runs, as the JSON lines that they become."""
    logger, handler = logging.getLogger("demur"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield lambda: handler.written
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/decide", {"json": {**INLINE, "input": SECRET}}),
        ("POST", "/decide", {"json": {"question": SECRET, "options": [SECRET, SECRET], "input": SECRET}}),
        ("POST", "/decide", {"content": json.dumps(SECRET)[:-1], "headers": {"Content-Type": "application/json"}}),
        ("POST", "/decide", {"json": {"task": SECRET, "input": SECRET, SECRET: 1}}),
        ("POST", "/decide", {"json": {**INLINE, "input": "bug " + SECRET}}),
        ("POST", "/decide", {"json": {**INLINE, "inputs": ["bug " + SECRET, "x"], "input": None}}),
        (
            "POST",
            "/v1/systemone",
            {"json": {"model": SECRET, "state": SECRET, "questions": {SECRET: {"type": SECRET}}}},
        ),
        ("GET", "/decide", {"params": {"input": SECRET}}),
        ("GET", f"/tasks/{SECRET}", {}),
        ("GET", f"/{SECRET}", {}),
        ("GET", "/healthz", {"headers": {"X-Request-Id": SECRET, "traceparent": SECRET}}),
        (SECRET.split()[-1].upper(), "/nowhere", {}),
    ],
)
async def test_nothing_that_callers_send_is_logged(plain, lines, method, path, options):
    client, stub = plain
    stub.fails = {"bug " + SECRET: ValueError(SECRET)}
    reply = await client.request(method, path, **options)
    written = lines()
    assert [line["status"] for line in written if line["logger"] == "demur.access"] == [reply.status_code]
    assert "Rumpelstiltskin" not in json.dumps(written)
    assert "RUMPELSTILTSKIN" not in json.dumps(written)


async def test_a_bug_is_logged_with_its_place_and_request_id(plain, lines):
    client, stub = plain
    stub.fails = {INLINE["input"]: ValueError(SECRET)}
    await client.post("/decide", json=INLINE, headers={"X-Request-Id": "abc"})
    (error,) = [line for line in lines() if line["level"] == "error"]
    assert (error["request_id"], error["exception"]) == ("abc", "ValueError")
    assert any("stub.py" in place for place in error["at"])


async def test_request_ids_and_traces_are_kept(plain, lines):
    client, _ = plain
    headers = {"X-Request-Id": "req-1:a/b", "traceparent": TRACE}
    reply = await client.post("/decide", json=INLINE, headers=headers)
    assert (reply.headers["x-request-id"], reply.headers["traceparent"]) == ("req-1:a/b", TRACE)
    (line,) = [line for line in lines() if line["logger"] == "demur.access"]
    assert (line["request_id"], line["traceparent"], line["route"], line["method"]) == (
        "req-1:a/b",
        TRACE,
        "/decide",
        "POST",
    )
    assert line["ms"] >= 0


@pytest.mark.parametrize("given", ["x" * 129, "a b", "é", "a\tb", ""])
async def test_request_ids_that_do_not_fit_are_replaced(plain, given):
    client, _ = plain
    reply = await client.get("/healthz", headers={"X-Request-Id": given.encode()})
    assert len(reply.headers["x-request-id"]) == 32
    assert reply.headers["x-request-id"] != (await client.get("/healthz")).headers["x-request-id"]


@contextlib.contextmanager
def configured():
    """The configuration of a server process, taken back afterwards."""
    before = {
        name: (logger.level, logger.handlers[:], logger.propagate)
        for name in ("", "demur", "uvicorn", "uvicorn.access")
        if (logger := logging.getLogger(name))
    }
    try:
        logging.config.dictConfig(logging_config("info"))
        yield
    finally:
        for name, (level, handlers, propagate) in before.items():
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.handlers[:], logger.propagate = handlers, propagate


def test_the_configuration_writes_json_lines(capsys):
    with configured():
        logging.getLogger("demur.server").info("hello %s", "world", extra={"fields": {"n": 1}})
        logging.getLogger("uvicorn.access").info("GET /?input=secret")
        logging.getLogger("demur.server").debug("quiet")
    (line,) = capsys.readouterr().err.splitlines()
    assert {"message": "hello world", "level": "info", "n": 1}.items() <= json.loads(line).items()


def test_what_the_event_loop_complains_about_shows_no_input(capsys):
    async def fail():
        raise ValueError(SECRET)

    async def forget():
        task = asyncio.create_task(fail())
        await asyncio.wait([task])

    with configured(), asyncio.Runner() as runner:
        runner.run(forget())
        gc.collect()
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["logger"], line["message"]) == ("asyncio", "Task exception was never retrieved")
    assert line["exception"] == "ValueError"
    assert "Rumpelstiltskin" not in json.dumps(line)
