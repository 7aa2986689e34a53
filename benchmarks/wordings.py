"""The search behind `examples/tasks/voice_intent.yaml`: wordings and readouts, compared on the searched rows alone.

Rule, settled before anything was read: of all configurations take the one with the least area under the risk-coverage
curve of the raw top probability; then, of `LIMITS`, the highest label mass that at least 95% of the searched rows have.
Every pair of a configuration and a limit counts into `--family` of `make bundle`. The certifying rows of
`examples/data/voice_intent.jsonl` are not opened here.

    .venv/bin/python -m benchmarks.wordings        # 8 minutes on two cores
"""

import argparse
import asyncio
import itertools
from pathlib import Path

import numpy as np

from demur.calibration import risk_coverage
from demur.decision.labelled import read_labelled
from demur.decision.question import Option, Question
from demur.decision.task import DecisionSpec, LengthHandling, PromptLayout, ReadoutKind, ReadoutSpec, Task
from demur.server.decide import DecidePipeline
from demur.server.demo_model import export_demo_model
from demur.server.engines.vllm_engine import VllmEngine
from demur.server.engines.vllm_setup import VllmSettings
from demur.server.evaluation import raw_probabilities
from demur.server.readers import PipelineReader
from demur.server.readings import read_rows

OPTIONS = ("timer", "spelling", "currency", "hotel", "restaurant", "shopping", "taxi", "calories")
LIMITS = (1e-4, 0.01, 0.02, 0.05, 0.1, 0.2)
#: What one would say to each skill, by its name; none of these is a row.
FIRST = {
    "hotel": "find me a room in lisbon for friday night",
    "timer": "tell me when ten minutes are over",
    "calories": "how much energy does a bowl of rice have",
    "taxi": "get me a ride home from the station",
    "spelling": "how many ls are in parallel",
    "shopping": "we are out of milk, put it on the list",
    "currency": "what are 20 francs in dollars",
    "restaurant": "book dinner for four at the new thai place",
}
SECOND = {
    "spelling": "with which letters do i write necessary",
    "restaurant": "get us a table at the harbour grill for eight tonight",
    "currency": "how is the krona doing against the euro",
    "taxi": "i need a car to the theatre right now",
    "hotel": "where can we stay in vienna from monday to thursday",
    "calories": "is there a lot of energy in a banana",
    "shopping": "take the onions off the list",
    "timer": "count down ninety seconds",
}
#: The same in the words that most people would use.
USUAL = {
    "hotel": "book me a hotel room in lisbon",
    "timer": "set a timer for seven minutes",
    "calories": "how many calories are in a bowl of rice",
    "taxi": "call a taxi to the station",
    "spelling": "how do you spell parallel",
    "shopping": "add milk to my shopping list",
    "currency": "what is the exchange rate of the franc to the dollar",
    "restaurant": "reserve a table for dinner at the new thai place",
}


def shown(opening: str, word: str, *sets: dict[str, str]) -> str:
    """A question that shows requests with their answers."""
    pairs = [f"Request: {said}\n{word}: {name}" for examples in sets for name, said in examples.items()]
    return "\n".join([opening, "", *pairs])


TOPIC = "Which topic is each request about?"
#: Question and the word before the answer.
WORDINGS = {
    "plain topic": ("Which topic is the request about?", "Topic"),
    "plain skill": ("Which skill of the assistant handles the request?", "Skill"),
    "topic, 8 shown": (shown(TOPIC, "Topic", FIRST), "Topic"),
    "skill, 8 shown": (shown("Which skill of the assistant handles each request?", "Skill", FIRST), "Skill"),
    "topic, 16 shown": (shown(TOPIC, "Topic", FIRST, SECOND), "Topic"),
    "skill, 16 shown": (shown("Which skill of the assistant handles each request?", "Skill", FIRST, SECOND), "Skill"),
    "topic, 8 usual": (shown(TOPIC, "Topic", USUAL), "Topic"),
    "topic, 8 usual, turned": (shown(TOPIC, "Topic", dict(reversed(USUAL.items()))), "Topic"),
    "topic, 16 with usual": (shown(TOPIC, "Topic", FIRST, USUAL), "Topic"),
    "about, 8 usual": (shown("What is each request about?", "About", USUAL), "About"),
    "category, 8 usual": (shown("Which category does each request belong to?", "Category", USUAL), "Category"),
    "word, 8 usual": (shown("Which word describes each request?", "Word", USUAL), "Word"),
}
#: Widened after a first round of six wordings, in which `sum` and `mean` (labels of one token each) were far behind.
TRIALS = [
    *itertools.product(list(WORDINGS)[:6], LengthHandling),
    *((wording, LengthHandling.PRIOR) for wording in list(WORDINGS)[6:]),
]


def task_of(wording: str, length: LengthHandling) -> Task:
    text, word = WORDINGS[wording]
    layout = PromptLayout(input_title="Request", instruction="", answer_prefix=f"{word}:")
    question = Question(text, tuple(map(Option, OPTIONS)))
    return Task("voice_intent", DecisionSpec(question, ReadoutSpec(ReadoutKind.TEXT, length), layout=layout))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Directory of the model; models/plain by default, made where it is missing.")
    parser.add_argument("--first", type=int, default=0, help="Trial to begin with.")
    given = parser.parse_args()
    model = given.model or str(export_demo_model(Path("models/plain"), plain=True))
    engine = await VllmEngine.start(VllmSettings(model=model))
    print(f"{len(TRIALS) * len(LIMITS)} configurations")
    print("| wording | lengths | accuracy | AURC | limit kept by 95% |\n|---|---|---|---|---|")
    try:
        pipeline = DecidePipeline(engine, max_input_tokens=engine.identity.max_model_len)
        for wording, length in TRIALS[given.first :]:
            task = task_of(wording, length)
            data = read_labelled(Path("examples/data/voice_intent_searched.jsonl"), task.spec.question)
            readings = await read_rows(PipelineReader(pipeline, task), data.rows)
            top = raw_probabilities(readings)
            correct = top.argmax(axis=1) == readings.labels
            limit = max(
                limit for limit in LIMITS if np.mean(readings.label_mass >= limit) >= 0.95 or limit == LIMITS[0]
            )
            area = risk_coverage(top.max(axis=1), correct).aurc
            print(f"| {wording} | {length} | {correct.mean():.3f} | {area:.5f} | {limit:g} |", flush=True)
    finally:
        await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main())
