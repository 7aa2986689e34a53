"""Closed-loop callers in a process of their own, so that they take nothing from the process that they measure.

Each caller holds one connection and sends its next request when it has the answer to the last, until the time is over
or, where none is given, until all requests are answered. Requests are built beforehand and answers are parsed
afterwards, since both arms share their cores with this process.

    python -m benchmarks.serving.load < JOB.json
"""

import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """`callers` send `bodies` to a local server, each once: until `seconds` are over, or all of them."""

    port: int
    path: str
    bodies: list[str]
    callers: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Burst:
    """What came of a job. `latencies` in seconds and `answers` go together; `seconds` until the last answer."""

    seconds: float
    latencies: list[float]
    answers: list[dict[str, Any]]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.answers) / self.seconds


def drive(port: int, path: str, bodies: Sequence[Any], *, callers: int, seconds: float | None = None) -> Burst:
    """Runs a job in another process. Raises RuntimeError when a request is not answered with 200."""
    job = Job(port, path, [json.dumps(body) for body in bodies], callers, seconds)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.load"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
        timeout=(seconds or 0) + 300,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return Burst(**json.loads(done.stdout))


def _request(job: Job, body: str, number: int) -> bytes:
    data = body.encode()
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: 127.0.0.1:{job.port}\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: {number}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _exchange(connection: socket.socket, request: bytes) -> bytes:
    """Sends a request and returns the body of its answer."""
    connection.sendall(request)
    received = _receive(connection)
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    while len(body) < length:
        body += _receive(connection)
    if b" 200 " not in lines[0]:
        raise RuntimeError(f"{lines[0].decode()}: {body[:300].decode(errors='replace')}")
    return body


def _receive(connection: socket.socket) -> bytes:
    # At once: a server that sends head and body apart would otherwise wait 40 ms for the acknowledgement.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    received = connection.recv(65536)
    if not received:
        raise RuntimeError("the server closed the connection")
    return received


def _run(job: Job) -> Burst:
    requests = iter([_request(job, body, number) for number, body in enumerate(job.bodies)])
    latencies: list[float] = []
    answers: list[bytes] = []
    faults: list[Exception] = []
    barrier = threading.Barrier(job.callers + 1)
    end = [0.0]

    def call() -> None:
        with socket.create_connection(("127.0.0.1", job.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            barrier.wait()
            try:
                while (start := time.perf_counter()) < end[0] and not faults:
                    answer = _exchange(connection, next(requests))
                    latencies.append(time.perf_counter() - start)
                    answers.append(answer)
            except StopIteration:
                if job.seconds is not None:
                    faults.append(RuntimeError("ran out of requests: give more of them, or less time"))
            except Exception as fault:  # to be raised by the main thread
                faults.append(fault)

    threads = [threading.Thread(target=call) for _ in range(job.callers)]
    for thread in threads:
        thread.start()
    end[0] = math.inf if job.seconds is None else time.perf_counter() + job.seconds
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if faults:
        raise faults[0]
    return Burst(seconds, latencies, [json.loads(answer) for answer in answers])


if __name__ == "__main__":
    json.dump(asdict(_run(Job(**json.load(sys.stdin)))), sys.stdout)
