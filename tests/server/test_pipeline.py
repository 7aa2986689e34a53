"""The pipeline on an engine that answers at once: what it does on the event loop, and what it keeps."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from demur.decision.errors import UnusableModelError
from demur.decision.prompt import CompiledPrompt
from demur.decision.question import Option, Question
from demur.decision.task import DecisionSpec, LengthHandling, ReadoutKind, ReadoutSpec, Task
from demur.server.decide import DecidePipeline
from demur.server.engines.base import ModelIdentity, TokenRead
from demur.server.errors import InputTooLong
from demur.server.types import DecideRequest
from tests.models import smollm2_tokenizer

OPTIONS = (Option("yes"), Option("no"))


class UniformEngine:
    """Every token is equally probable."""

    def __init__(self, context: int) -> None:
        self.identity = ModelIdentity("uniform", "", "", "", "none", context)
        self.tokenizer = smollm2_tokenizer()
        self.calls: list[int] = []

    async def read(self, prompts, labels):
        self.calls.append(len(prompts))
        if any(len(prompt.ids) >= self.identity.max_model_len for prompt in prompts):
            raise ValueError("longer than the context")
        size = len(self.tokenizer)
        return [
            TokenRead(np.full(len(ids), -np.log(size)), len(prompt.ids), 0)
            for prompt, ids in zip(prompts, labels, strict=True)
        ]


@pytest.fixture
def pipeline(monkeypatch):
    built = DecidePipeline(UniformEngine(context=4096), max_input_tokens=4096)
    threads, new = [], built._new

    def recorded(spec):
        threads.append(threading.current_thread())
        return new(spec)

    monkeypatch.setattr(built, "_new", recorded)
    built.threads = threads
    return built


async def test_a_long_question_is_compiled_off_the_event_loop_and_kept(pipeline):
    asked = DecideRequest(DecisionSpec(Question("Is it so? " * 1000, OPTIONS)), "x")
    await asyncio.gather(*(pipeline.decide(asked) for _ in range(4)))
    assert threading.current_thread() not in pipeline.threads
    (kept,) = pipeline._questions.values()
    await pipeline.decide(asked)
    assert list(pipeline._questions.values()) == [kept]
    compiled = len(pipeline.threads)
    await pipeline.decide(asked)
    assert len(pipeline.threads) == compiled


async def test_a_question_that_no_input_fits_beside_is_refused_and_not_kept(pipeline):
    asked = DecideRequest(DecisionSpec(Question("Is it so? " * 2000, OPTIONS)), "x")
    with pytest.raises(InputTooLong) as error:
        await pipeline.decide(asked)
    assert error.value.extra["allowed"] == 0
    assert not pipeline._questions


@pytest.mark.parametrize("room", [0, 1, 2])
async def test_a_question_that_leaves_no_room_for_the_prior_is_refused(room):
    """What is read for the prior is longer than the shortest input."""
    spec = DecisionSpec(Question("Is it so?", OPTIONS), ReadoutSpec(ReadoutKind.TEXT, LengthHandling.PRIOR))
    fixed = DecidePipeline(UniformEngine(4096), max_input_tokens=4096).prompts.compile(spec).fixed_tokens
    pipeline = DecidePipeline(UniformEngine(fixed + room), max_input_tokens=4096)
    for text in ("x", ""):
        with pytest.raises(InputTooLong):
            await pipeline.decide(DecideRequest(spec, text))
    with pytest.raises(UnusableModelError, match=f"task t: .* no room for an input in the context of {fixed + room}"):
        pipeline.prepare([Task("t", spec)])


async def test_long_inputs_leave_other_work_its_threads(pipeline, monkeypatch):
    """Certificates are followed on the event loop's own threads, and nothing is trusted without."""
    render, begun, free = CompiledPrompt.render, threading.Event(), threading.Event()

    def slow(*given):
        begun.set()
        free.wait(20)
        return render(*given)

    monkeypatch.setattr(CompiledPrompt, "render", slow)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    asked = DecideRequest(DecisionSpec(Question("Is it so?", OPTIONS)), "so " * 1500)
    decisions = [asyncio.create_task(pipeline.decide(asked)) for _ in range(3)]
    try:
        async with asyncio.timeout(10):
            while not begun.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.to_thread(int)
    finally:
        free.set()
        await asyncio.gather(*decisions)


async def test_a_decision_of_many_reads_is_put_to_the_engine_in_parts(pipeline):
    words = ("alpha", "beta", "gamma", "delta", "omega")
    names = [f"{a} {b} {c}" for a in words for b in words for c in words]
    text = ReadoutSpec(ReadoutKind.TEXT)
    question = Question(
        "Which?", tuple(Option(f"{name} {number}{number}{number}") for number, name in enumerate(names))
    )
    decision = await pipeline.decide(DecideRequest(DecisionSpec(question, text), "x"))
    assert decision.usage.reads == sum(pipeline.engine.calls) > 256
    assert max(pipeline.engine.calls) == 256
    assert decision.probabilities.sum() == pytest.approx(1)
