"""vLLM's readouts are those of transformers, within 1e-3, alone and in company."""

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from demur.decision.prompt import CompiledPrompt, TokenPrompt
from demur.decision.question import Option, Question
from demur.decision.readout import Readout
from demur.decision.task import DecisionSpec, ReadoutKind, ReadoutSpec
from demur.server.engines.base import Engine
from demur.server.engines.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.live import Live

pytestmark = pytest.mark.engine

TOPICS = ["weather", "sports results", "banking", "travel plans", "small talk", "cooking", "car repair", "work"]
INPUTS = [
    "what is the exchange rate between dollars and euros",
    "will it rain in Oslo tomorrow",
    "how do I get a grease stain out of a shirt",
    "book me a table for two at eight",
    "Schöne Grüße aus München 🌦",
    "my engine makes a grinding noise when I brake",
    "x",
    "tell me a joke about databases " * 20,
]


def question(count: int, *, words: int = 1) -> Question:
    names = [
        " ".join([TOPICS[i % len(TOPICS)], *([str(i)] if count > len(TOPICS) else []), *["now"] * (words - 1)])
        for i in range(count)
    ]
    return Question("Which topic is this about?", tuple(Option(name) for name in names))


CASES = {
    "letter": DecisionSpec(question(8)),
    "letter, 200 labels": DecisionSpec(question(200)),
    "text": DecisionSpec(question(8), ReadoutSpec(ReadoutKind.TEXT)),
    "text, many tokens": DecisionSpec(question(6, words=3), ReadoutSpec(ReadoutKind.TEXT)),
    "text, one begins another": DecisionSpec(
        Question("Which?", (Option("card"), Option("card lost"), Option("card lost abroad"))),
        ReadoutSpec(ReadoutKind.TEXT),
    ),
}


@pytest.fixture(scope="module")
def reference(demo_model: "Path") -> TransformersEngine:
    torch.set_num_threads(1)  # two would wait for each other beside vLLM's
    return asyncio.run(TransformersEngine.start(str(demo_model)))


async def read(engine: Engine, prompt: CompiledPrompt, text: str) -> Readout:
    ids = prompt.render(text, 4096).ids
    plan = prompt.plan
    prompts = [TokenPrompt(ids + each.suffix) for each in plan.reads]
    reads = await engine.read(prompts, [each.ids for each in plan.reads])
    return plan.combine([each.logprobs for each in reads])


@pytest.mark.parametrize("case", CASES)
def test_readouts_agree_alone_and_in_a_batch_of_16(case: str, live: "Live", reference: TransformersEngine) -> None:
    prompt = live.pipeline.prompts.compile(CASES[case])
    wanted = [asyncio.run(read(reference, prompt, text)) for text in INPUTS[:2]]

    alone = [live.run(read(live.engine, prompt, text)) for text in INPUTS[:2]]

    async def together() -> list[Readout]:
        return await asyncio.gather(*(read(live.engine, prompt, text) for text in INPUTS * 2))

    company = live.run(together())[:2]
    for expected, single, batched in zip(wanted, alone, company, strict=True):
        np.testing.assert_allclose(single.logprobs, expected.logprobs, atol=1e-3)
        np.testing.assert_allclose(batched.logprobs, expected.logprobs, atol=1e-3)
        assert single.label_mass <= 1


def test_the_start_up_probe_finds_wide_reads_and_splitting_gives_the_same(live: "Live") -> None:
    prompt = live.pipeline.prompts.compile(DecisionSpec(question(255)))
    assert live.engine.label_limit == 256
    assert [len(each.ids) for each in prompt.plan.reads] == [255]
    live.run(read(live.engine, prompt, INPUTS[0]))  # both reads below then begin from the same cached prefix
    wide = live.run(read(live.engine, prompt, INPUTS[0]))
    live.engine.label_limit = 128
    try:
        split = live.run(read(live.engine, prompt, INPUTS[0]))
    finally:
        live.engine.label_limit = 256
    np.testing.assert_allclose(split.logprobs, wide.logprobs, atol=1e-5)
