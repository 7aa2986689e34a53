"""`demur serve` from start to drain."""

import json
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.process.server import BIN, ServerProcess, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.process]

KEY = {"authorization": "Bearer key-1"}


def test_serve_with_keys_and_without_a_compiler(tmp_path: Path, demo_model: Path) -> None:
    """One process through its life: ready, conformance with a key, reload, drain."""
    tasks = tmp_path / "tasks"
    shutil.copytree("examples/tasks", tasks)
    tools = tmp_path / "bin"
    tools.mkdir()
    # Of the system's programs vLLM runs this one, to see the cores; it is on every Linux.
    (tools / "lscpu").symlink_to(shutil.which("lscpu") or "lscpu")
    env = {"DEMUR_API_KEYS": "key-1,key-2", "PATH": f"{BIN}:{tools}", "CC": "", "CXX": ""}
    assert shutil.which("gcc", path=env["PATH"]) is None
    assert shutil.which("c++", path=env["PATH"]) is None
    arguments = ("--model", str(demo_model), "--tasks", str(tasks))
    with ServerProcess(*arguments, log=tmp_path / "log", env=env) as server:
        wait_for(lambda: server.status("/healthz") == 200, 60, "liveness")
        assert server.status("/readyz") == 503
        starting = httpx.post(f"{server.url}/decide", json={}, headers=KEY)
        assert starting.status_code == 503
        assert int(starting.headers["retry-after"]) > 0
        server.ready()

        conformance(server, tmp_path)
        reload(server, tasks)
        drain(server)


def conformance(server: ServerProcess, directory: Path) -> None:
    report = directory / "report.json"
    subprocess.run(
        [BIN / "jevcompat", "test", server.url, "--key-env", "KEY", "--json", report],
        env={**os.environ, "KEY": "key-1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    results = {each["id"]: each["status"] for each in json.loads(report.read_text())["results"]}
    # With a key the one about servers without keys cannot be tested; test_live_server.py has it.
    assert {name for name, status in results.items() if status != "pass"} == {"auth.ignored-when-off"}


def reload(server: ServerProcess, tasks: Path) -> None:
    """SIGHUP takes up what is new, and keeps everything where one file is wrong."""

    def names() -> set[str]:
        return {task["name"] for task in httpx.get(f"{server.url}/tasks", headers=KEY).json()["tasks"]}

    before = names()
    assert before
    (tasks / "late.yaml").write_text("name: late\nquestion: Is it late?\noptions: [very, not]\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "late" in names(), 20, "reloaded task")
    (tasks / "late.yaml").write_text("name: later\nquestion: Is it late?\noptions: [very, very]\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "tasks not reloaded" in server.log.read_text(), 20, "refusal in the log")
    assert names() == before | {"late"}


def drain(server: ServerProcess) -> None:
    """SIGTERM: what is in flight is answered, new work is refused, and the process ends with 0."""
    body = {
        "question": "Which?",
        "options": ["parcel", "refund"],
        "mode": "reasoned",
        "thought": {"max_tokens": 150, "max_ms": 20_000},
        "input": "where is my parcel",
    }
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/decide", json=body, headers=KEY, timeout=60)
        wait_for(
            lambda: "demur_in_flight 1.0" in httpx.get(f"{server.url}/metrics", headers=KEY).text, 20, "work in flight"
        )
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.status("/readyz") == 503, 5, "draining")
        refused = httpx.post(f"{server.url}/decide", json=body, headers=KEY)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert answer.result().status_code == 200
    assert server.process.wait(35) == 0
    wait_for(lambda: not server.survivors(), 5, "end of every child")


def test_a_signal_while_starting_ends_the_server(tmp_path: Path) -> None:
    with ServerProcess("--demo", log=tmp_path / "log") as server:
        wait_for(lambda: server.status("/healthz") == 200, 60, "liveness")
        parent = psutil.Process(server.process.pid)
        server.family = wait_for(lambda: parent.children(recursive=True), 60, "engine process")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        wait_for(lambda: not server.survivors(), 5, "end of the engine")


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with ServerProcess("--demo", log=tmp_path / "log") as server:
        server.ready()
        body = {
            "question": "Which?",
            "options": ["parcel", "refund"],
            "mode": "reasoned",
            "thought": {"max_tokens": 1000, "max_ms": 60_000},
            "input": "where is my parcel",
        }
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx.post, f"{server.url}/decide", json=body, timeout=60)
            wait_for(lambda: "demur_in_flight 1.0" in httpx.get(f"{server.url}/metrics").text, 20, "work in flight")
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: server.status("/readyz") == 503, 5, "draining")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(5) == 130
            assert isinstance(answer.exception(), httpx.TransportError)
        wait_for(lambda: not server.survivors(), 5, "end of every child")


def test_decide_in_process_needs_no_server(demo_model: Path) -> None:
    done = subprocess.run(
        [
            BIN / "demur",
            "decide",
            "voice_intent",
            "wake me up at six",
            "--model",
            demo_model,
            "--tasks",
            "examples/tasks",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["decision"] in answer["probabilities"]
    assert answer["task"] == "voice_intent"
