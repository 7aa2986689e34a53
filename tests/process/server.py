"""`demur serve` as a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TypeVar

import httpx
import psutil

T = TypeVar("T")
BIN = Path(sys.executable).parent


def wait_for(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first true result of `condition`; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    def __init__(self, *arguments: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(BIN / "demur"), "serve", "--port", str(self.port), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        self.family: list[psutil.Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.family = self.family or psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(10)
        for child in self.family:
            if child.is_running():
                child.kill()

    def status(self, path: str, **more: object) -> int | None:
        """The status of a GET, None while nothing listens."""
        try:
            return httpx.get(self.url + path, timeout=10, **more).status_code  # type: ignore[arg-type]
        except httpx.TransportError:
            return None

    def ready(self) -> Self:
        def probe() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return self.status("/readyz") == 200

        wait_for(probe, 240, "readiness")
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def engine_process(self, name: str) -> psutil.Process:
        return next(child for child in self.family if name in " ".join(child.cmdline()) or name in child.name())

    def survivors(self) -> list[psutil.Process]:
        return [child for child in self.family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
