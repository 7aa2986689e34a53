"""The server on the real engine: overload, the command line, TypeSafe's contract."""

import asyncio
import json
import os
import subprocess
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from jevcompat import runner, spec

from demur.clients import Client
from demur.server.settings import Settings
from tests.process.server import BIN

if TYPE_CHECKING:
    from tests.live import Live, LiveServer

pytestmark = pytest.mark.engine

CALLERS = 500
INPUTS = [f"order {number}: the parcel is late and I want my money back" for number in range(20)]
BODY = {"question": "What is it about?", "options": ["delivery", "refund", "praise"], "readout": {"kind": "text"}}


def demur(*arguments: str, url: str | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"DEMUR_URL": url} if url else {})}
    return subprocess.run(
        [BIN / "demur", *arguments], capture_output=True, text=True, input=stdin, env=env, timeout=300, check=False
    )


def memory() -> int:
    """Resident bytes of this process (the server runs in it) and of the engine's."""
    me = psutil.Process()
    return sum(process.memory_info().rss for process in [me, *me.children(recursive=True)])


def test_500_callers_on_a_queue_of_64(live: "Live") -> None:
    server = live.serve(Settings(queue_size=64, max_batch=64, max_questions=64, deadline_s=300))
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            alone = [client.post("/decide", json={**BODY, "input": text}).json()["probabilities"] for text in INPUTS]
        after_first = asyncio.run(burst(server.url, alone)), memory()
        after_second = asyncio.run(burst(server.url, alone)), memory()
    finally:
        live.stop(server)
    assert after_second[1] - after_first[1] < 50 * 2**20
    for answered, refused in (after_first[0], after_second[0]):
        assert answered + refused == CALLERS
        assert answered >= 64
        assert refused > 0


async def burst(url: str, alone: list[dict[str, float]]) -> tuple[int, int]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        calls = [client.post("/decide", json={**BODY, "input": INPUTS[n % len(INPUTS)]}) for n in range(CALLERS)]
        responses = await asyncio.gather(*calls)
    assert {response.status_code for response in responses} <= {200, 429}
    for number, response in enumerate(responses):
        if response.status_code == 200:
            assert response.json()["probabilities"] == pytest.approx(alone[number % len(INPUTS)], abs=1e-3)
        else:
            assert int(response.headers["retry-after"]) > 0
    answered = sum(response.status_code == 200 for response in responses)
    return answered, len(responses) - answered


def test_conformance_to_typesafes_contract_without_a_key(demo_server: "LiveServer") -> None:
    report = runner.run(demo_server.url, timeout=120)
    assert not [(result.id, result.findings) for result in report.results if result.status == "fail"]
    assert report.verdict == "conformant"
    passed = {result.id for result in report.results if result.status == "pass"}
    assert set(spec.REQUIREMENTS) - passed <= {"auth.bearer", "auth.missing", "auth.invalid"}


def test_decide_on_the_command_line(demo_server: "LiveServer") -> None:
    with Client(demo_server.url) as client:
        task = client.tasks()[0].name
    one = demur("decide", task, "what is the exchange rate", url=demo_server.url)
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)["verdict"] in {"trust", "review", "defer"}

    lines = '{"input": "hello", "ref": 1}\n"good morning"\n\n{"input": {"a": [1, null]}, "ref": 3}\n'
    many = demur("decide", task, url=demo_server.url, stdin=lines)
    assert many.returncode == 0, many.stderr
    answers = [json.loads(line) for line in many.stdout.splitlines()]
    assert [answer.get("ref") for answer in answers] == [1, None, 3]
    assert all(answer["decision"] in answer["probabilities"] for answer in answers)
    assert "decision" in many.stderr, "progress goes to standard error"

    assert "did you mean" in demur("decide", task + "x", "y", url=demo_server.url).stderr
    assert "not JSON" in demur("decide", task, url=demo_server.url, stdin="{\n").stderr
    gone = demur("decide", task, "y", "--url", "http://127.0.0.1:9")
    assert gone.returncode == 1
    assert "is a server running" in gone.stderr


def test_commands_that_need_no_server(tmp_path: object) -> None:
    assert demur("version").stdout.strip()
    good = demur("tasks", "check", "examples/tasks")
    assert good.returncode == 0, good.stderr
    helped = demur("serve", "--help").stdout
    for text in ("--queue-size", "[default: 512]", "--max-body-bytes", "--deadline-s", "[default: 60.0]"):
        assert text in helped
    refused = demur("serve", "--demo", "--host", "0.0.0.0")  # noqa: S104
    assert refused.returncode == 2
    assert "without keys" in refused.stderr
    assert "no model" in demur("serve").stderr
