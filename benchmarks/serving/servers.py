"""Servers as processes, all started with the same engine settings."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

CACHE = Path(".cache/benchmarks")
_START_TIMEOUT_S = 300

#: The engine's settings in every arm. What is not here is each side's default, which is the same.
ENGINE = {"dtype": "float32", "block_size": 32, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
MAX_MODEL_LEN = 8192


def engine_environment() -> dict[str, str]:
    """The variables of every arm: all cores for the engine, 1 GiB of KV cache, nothing compiled, no chatter."""
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in sorted(os.sched_getaffinity(0))),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready. `start_seconds`: from the start of its process until then."""

    port: int
    pid: int
    log: Path
    start_seconds: float

    def resident_mb(self) -> float:
        """Memory of the server and all its children, in MB; pages that they share count once (PSS)."""
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(process.memory_full_info().pss for process in family) / 1e6


@contextmanager
def demur(model: Path, tasks: Path, name: str = "demur") -> Iterator[Server]:
    """`demur serve`."""
    command = [str(Path(sys.executable).parent / "demur"), "serve", "--port", "{port}"]
    command += [
        "--model",
        str(model),
        "--tasks",
        str(tasks),
        *_flags(ENGINE),
        *_flags({"max_model_len": MAX_MODEL_LEN}),
    ]
    with running(command, name, ready="/readyz", more={"DEMUR_LOG_LEVEL": "info"}) as server:
        yield server


@contextmanager
def vllm(model: Path, served_as: str, name: str = "vllm") -> Iterator[Server]:
    """vLLM's own OpenAI server, eager, with prefix caching, and without its access log."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--model", str(model), "--served-model-name", served_as, "--generation-config", "vllm"]
    command += ["--enforce-eager", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
    # Without it the demo model may fill its answer with white space; with it the answer is as short as can be.
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    command += [*_flags(ENGINE), *_flags({"max_model_len": MAX_MODEL_LEN})]
    with running(command, name, ready="/health") as server:
        yield server


@contextmanager
def running(
    command: Sequence[str], name: str, *, ready: str, more: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The command as a server, once `ready` is answered with 200; "{port}" in it becomes a free one."""
    port = free_port()
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / f"{name}.log"
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [word.format(port=port) if word == "{port}" else word for word in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **engine_environment(), **(more or {})},
            start_new_session=True,
        )
    try:
        _await(process, f"http://127.0.0.1:{port}{ready}", log)
        yield Server(port, process.pid, log, time.monotonic() - start)
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Ends a process and all its children."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"not ready after {_START_TIMEOUT_S} s; see {log}")


def _flags(settings: Mapping[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
