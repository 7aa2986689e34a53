"""An engine that dies or hangs: callers get an answer, the server ends by itself, and nothing is left behind."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.process.server import ServerProcess, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.process]

CALLERS = 16


@pytest.mark.parametrize(
    "faults",
    [
        {"EngineCore": signal.SIGKILL},
        {"EngineCore": signal.SIGSTOP},
        # The server waits for the tracker at its end, and would for ever.
        {"Worker": signal.SIGKILL, "resource_tracker": signal.SIGSTOP},
    ],
    ids=["engine core killed", "engine stopped", "worker killed and the end hangs"],
)
def test_a_dead_or_hung_engine_ends_the_server_in_time(faults: dict[str, signal.Signals], tmp_path: Path) -> None:
    with ServerProcess("--demo", log=tmp_path / "log") as server:
        server.ready()
        text = "when will my parcel arrive, it is late and I have heard nothing " * 40

        def ask(number: int) -> httpx.Response:
            body = {"question": "Which?", "options": ["parcel", "refund"], "input": f"{number} {text}"}
            return httpx.post(f"{server.url}/decide", json=body, timeout=30)

        with ThreadPoolExecutor(CALLERS) as pool:
            answers = [pool.submit(ask, number) for number in range(CALLERS)]
            wait_for(lambda: "demur_in_flight 16.0" in httpx.get(f"{server.url}/metrics").text, 30, "load")
            start = time.monotonic()
            for process, kind in faults.items():
                server.engine_process(process).send_signal(kind)
            wait_for(lambda: server.status("/readyz") == 503, 2, "503 of /readyz")
            responses = [answer.result() for answer in answers]
        assert {response.status_code for response in responses} <= {200, 503}
        refused = [response for response in responses if response.status_code == 503]
        assert refused
        for response in refused:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["type"] == "urn:demur:problem:engine_unavailable"
        assert server.process.wait(10) == 70
        assert time.monotonic() - start < 10
        wait_for(lambda: not server.survivors(), 5, "end of every child")
