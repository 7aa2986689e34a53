"""What logging and auditing take from a real engine: the demo model, with its example task, bundle and audit rates.

One engine, asked with and without the loop in turn, A B B A ..., the same inputs in both arms of a round, but for the
number that each begins with. There are more callers than a step of the engine takes: a few in lockstep would make a
step of their own for each one that waits for the disk, which measures the callers.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.serving.models import DEMO
from benchmarks.serving.report import Row, faster
from demur.decision.taskfile import load_tasks
from demur.server.bundles import read_bundles
from demur.server.decide import DecidePipeline
from demur.server.engines.vllm_engine import VllmEngine
from demur.server.loop.loop import Loop
from demur.server.loop.watch import Watch
from demur.server.metrics import MeasuredDecider, Metrics
from demur.server.registry import Registry
from demur.server.serve import vllm_settings
from demur.server.settings import Settings
from demur.server.store.upkeep import totals
from demur.server.types import Decider, DecideRequest

ROUNDS, INPUTS, CALLERS = 30, 256, 64
_TASK = "voice_intent"


def run() -> list[Row]:
    """Decisions a second without and with the loop, and processor time that it adds to one."""
    lines = Path(f"examples/data/{_TASK}.jsonl").read_text().splitlines()
    return asyncio.run(_run([json.loads(line)["input"] for line in lines]))


async def _run(texts: list[str]) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(model=str(DEMO), model_name="SmolLM2-135M-demo", state_dir=Path(place))
        tasks, bundles = load_tasks(Path("examples/tasks")), read_bundles(Path("examples/bundles"))
        engine = await VllmEngine.start(vllm_settings(settings))
        pipeline = DecidePipeline(engine, max_input_tokens=settings.max_input_tokens)
        prepared = pipeline.prepare(tasks.values(), bundles)
        await pipeline.warm(prepared)
        pipeline.adopt(prepared)
        loop, metrics, registry = Loop.open(settings), Metrics(), Registry(tasks, prepared.bundles)
        assert loop is not None
        loop.start()
        watch = Watch.over(loop, registry, metrics, settings, lambda: pipeline)
        pipeline.standing = watch.standing
        await watch.begin(prepared.bundles)
        arms: dict[str, Decider] = {
            "bare": MeasuredDecider(pipeline, Metrics()),
            "looped": MeasuredDecider(loop.decider(pipeline), metrics),
        }
        rates: dict[str, list[float]] = {"bare": [], "looped": []}
        spent: dict[str, list[float]] = {"bare": [], "looped": []}
        for number in range(ROUNDS + 1):
            began = time.perf_counter()
            some = [texts[(number * INPUTS + i) % len(texts)] for i in range(INPUTS)]
            for second, name in enumerate(sorted(arms, reverse=bool(number % 2))):
                # In front, since the arm that comes second would find what the first one has cached.
                asked = [f"{2 * number + second} {text}" for text in some]
                requests = [DecideRequest(tasks[_TASK].spec, text, tasks[_TASK]) for text in asked]
                if name == "looped":
                    watch.start()  # which follows the store all the time
                    await asyncio.sleep(0.1)
                start, cpu = time.perf_counter(), time.process_time()
                await _ask(arms[name], requests)
                took = time.perf_counter() - start
                # The last second is written after the last answer, and costs the next arm nothing.
                while loop.log.buffered:  # noqa: ASYNC110 - the log is measured as it is
                    await asyncio.sleep(0.1)
                if number:  # the first round warms caches
                    rates[name].append(INPUTS / took)
                    spent[name].append((time.process_time() - cpu) / INPUTS * 1e3)
                await watch.aclose()
            took = time.perf_counter() - began
            print(f"  round {number} of {ROUNDS}: {took:.0f} s", file=sys.stderr, flush=True)
        audits = loop.store.read_now(totals).audits
        await loop.aclose()
        await engine.aclose()
    print(f"{audits} of {(ROUNDS + 1) * INPUTS} decisions were audited")
    ratios = [ours / theirs for ours, theirs in zip(rates["looped"], rates["bare"], strict=True)]
    error = stdev(ratios) / ROUNDS**0.5
    added = sum(spent["looped"]) / ROUNDS - sum(spent["bare"]) / ROUNDS
    return [
        faster(
            "decisions with logging and audits, against none",
            rates["looped"],
            rates["bare"],
            at_least=0.98,
            note=f"mean {fmean(ratios):.3f} with a standard error of {error:.3f}",
        ),
        Row(what="processor time that they add to a decision, all threads", unit="ms", ours=added),
    ]


async def _ask(decider: Decider, requests: list[DecideRequest]) -> None:
    waiting = iter(requests)

    async def caller() -> None:
        for request in waiting:
            await decider.decide(request)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
