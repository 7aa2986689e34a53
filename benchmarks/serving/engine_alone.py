"""Against the engine alone: what HTTP, the prompt and the policy cost on top of `LLM.generate` on the same tokens.

Both arms do the same work: as many inputs, the same ones, from the first until the last is answered. A round of fixed
time would count a few batches only, and among them those that are part-filled because the callers begin and end.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving import questions, servers
from benchmarks.serving.load import drive
from benchmarks.serving.models import DEMO
from benchmarks.serving.report import Row, faster
from benchmarks.serving.rounds import in_turn
from benchmarks.serving.tasks import TASK, bank

_SECONDS = 6.0
_CALLERS = 64
_READS = 160


def run() -> Sequence[Row]:
    """Rates with 64 callers, and the time of a request outside the await on the engine with one."""
    with servers.demur(DEMO, bank(), name="engine-demur") as ours, _offline(DEMO) as engine:

        def served(number: int) -> float:
            bodies = [questions.decide(TASK, text) for text in questions.inputs(f"engine/{number}", _READS)]
            return drive(ours.port, "/decide", bodies, callers=_CALLERS).rate

        def alone(number: int) -> float:
            return _READS / engine(f"engine/{number}", _READS)

        mine, theirs = in_turn([served, alone])
        bodies = [questions.decide(TASK, text) for text in questions.inputs("outside", 1500)]
        outside = _outside_ms(ours, bodies)
    return [
        faster("registered task, 64 callers, against the engine alone (LLM.generate)", mine, theirs, at_least=0.9),
        Row(what="time of a request outside the engine, one caller, median", unit="ms", ours=outside, at_most=2),
    ]


def _outside_ms(server: servers.Server, bodies: list[dict[str, Any]]) -> float:
    """The access log's time of a request, body to last byte of the answer, less the await on the engine."""
    size = server.log.stat().st_size
    burst = drive(server.port, "/decide", bodies, callers=1, seconds=_SECONDS)
    with server.log.open(encoding="utf-8") as log:
        log.seek(size)
        lines = [json.loads(line) for line in log if line.startswith("{")]
    logged: list[float] = [line["ms"] for line in lines if line.get("route") == "/decide"]
    engine: list[float] = [answer["timings"]["engine_ms"] for answer in burst.answers]
    return median(whole - part for whole, part in zip(logged, engine, strict=True))


@contextmanager
def _offline(model: Path) -> Iterator[Callable[[str, int], float]]:
    """A function of a seed and a number of prompts: the seconds that the engine alone takes for them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.offline", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **servers.engine_environment()},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    replies = (json.loads(line) for line in process.stdout if line.startswith("{"))
    next(replies)

    def seconds(seed: str, number: int) -> float:
        process.stdin.write(json.dumps([seed, number]) + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return float(next(replies)["seconds"])

    try:
        yield seconds
    finally:
        servers.stop(process)
