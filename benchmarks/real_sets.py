"""Accuracy, calibration and certified coverage of the demo model on real sets, before and after calibration.

Each set is cut to 240 rows by a hash of their content, read once by the engine in this process, and judged by the code
behind `demur evaluate` and `demur calibrate`. Reads are kept, so that a run that was stopped goes on. "Before" is the
model's own probability; "after" is cross-fitted.
Coverage is certified on both routes at delta .05, at alpha .05 and at .2, which is easier to meet.

    .venv/bin/python -m benchmarks.real_sets      # a quarter of an hour on two busy cores; writes docs/real_sets.md
    .venv/bin/python -m benchmarks.real_sets --rows 200 --only csqa
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demur.calibration import calibration_report
from demur.decision.labelled import LabelledData, parse_labelled
from demur.decision.question import Option, Question
from demur.decision.task import DecisionSpec, LengthHandling, PromptLayout, ReadoutKind, ReadoutSpec, Task, Truncation
from demur.server.calibrate import Plan, calibrate
from demur.server.decide import DecidePipeline
from demur.server.demo_model import export_demo_model
from demur.server.engines.vllm_engine import VllmEngine
from demur.server.engines.vllm_setup import VllmSettings
from demur.server.evaluation import raw_probabilities
from demur.server.making import after_cross_fit
from demur.server.readers import PipelineReader
from demur.server.readings import Readings, read_rows

TEXT, LETTER = ReadoutKind.TEXT, ReadoutKind.LETTER
#: Placeholder of a set whose rows bring their own question.
OWN = Question("Which answer is right?", (Option("one"), Option("other")))


@dataclass(frozen=True)
class Set:
    """A file of the data directory, how it is asked about, and what its inputs are called."""

    file: str
    readout: ReadoutSpec
    input_title: str = "Text"
    key: str | None = None


SETS = {
    "moderation": Set("moderation_train", ReadoutSpec(TEXT, LengthHandling.PRIOR), key="moderation"),
    "clinc domains": Set("clinc_val", ReadoutSpec(TEXT, LengthHandling.PRIOR), "Utterance", "clinc"),
    "banking77": Set("banking77_train", ReadoutSpec(LETTER), "Message", "banking77"),
    "hate and offence": Set("hate_offensive_dev", ReadoutSpec(TEXT, LengthHandling.PRIOR), "Post", "hate_offensive"),
    "strategyqa": Set("strategyqa_train", ReadoutSpec(TEXT, LengthHandling.PRIOR), "Question", "strategyqa"),
    "csqa": Set("csqa_dev", ReadoutSpec(TEXT, LengthHandling.MEAN), "Question"),
    "openbookqa": Set("openbookqa_valid", ReadoutSpec(TEXT, LengthHandling.MEAN), "Question"),
}

PAGE = """# The demo model on real sets

SmolLM2-135M-Instruct, not trained for any of these, read by vLLM on a CPU: what calibration does for a weak model, and
how little of it may be trusted. "Before" is the model's own probability of its choice; "after" is cross-fitted, so no
row is judged by a calibrator that saw it. ECE is over 15 bins of equal count, NLL in nats. Certified coverage is the
share of decisions that are trusted with at most 5% (20%) error at 95% confidence: "raw" ranks by the model's own
probability and lets every label certify, "split" fits `p_correct` on one half and certifies on the other.

Made by `.venv/bin/python -m benchmarks.real_sets` from the sets' training or validation splits, at most {rows} rows
each, without those whose label is no option (CLINC's out of scope); label-mass limits are the defaults.

{table}
A coverage of 0% means that the certificate names no threshold, and the server trusts nothing. Where accuracy changes,
the calibrator has learned what the model's answers are biased to, and moves decisions.
"""
HEAD = (
    "| set | options | n | accuracy before | accuracy after | ECE before | ECE after | NLL before | NLL after "
    "| calibrator | raw, 5% | split, 5% | raw, 20% | split, 20% |\n" + 14 * "|---" + "|\n"
)


def rows_of(path: Path, question: Question, n: int) -> LabelledData:
    """At most `n` rows, chosen by hash, of those whose label is an option of `question` or of their own one.

    What a row asks by itself becomes its input: the same words ask about all of them.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row["input"] = " ".join(part for part in (row.get("input"), row.pop("question", None)) if part)
        lines.append(json.dumps(row))
    data = parse_labelled("\n".join(lines).encode(), path.stem, question, drop=True)
    return replace(data, rows=tuple(sorted(data.rows, key=lambda row: row.hash)[:n]))


def task_of(name: str, chosen: Set, asked: dict[str, Any]) -> Task:
    question = OWN
    if chosen.key is not None:
        said = asked[chosen.key]
        question = Question(said["question"] or "Is the answer yes or no?", tuple(map(Option, said["options"])))
    layout = PromptLayout(input_title=chosen.input_title)
    spec = DecisionSpec(question, chosen.readout, layout=layout, truncation=Truncation.HEAD, max_input_tokens=512)
    return Task(name.replace(" ", "-"), spec)


def judge(name: str, readings: Readings, data: LabelledData, task: Task, readout: ReadoutKind) -> str:
    vary = data.options_vary
    after = after_cross_fit(readings, options_vary=vary)
    before = calibration_report(raw_probabilities(readings), readings.labels)
    later = calibration_report(after.probabilities, readings.labels)
    shares = []
    for alpha in (0.05, 0.2):
        for route in ("label_free", "split"):
            plan = Plan(alpha=alpha, beta=0.5, route=route)
            made = calibrate(readings, task, plan, readout=readout, options_vary=vary)
            covered = 0.0 if made.certificates is None else made.certificates.trusted.certified_coverage
            shares.append(f"{covered:.0%}")
    pairs = ((one.accuracy, one.ece_quantile_15, one.nll) for one in (before, later))
    figures = " | ".join(f"{figure:.3f}" for pair in zip(*pairs, strict=True) for figure in pair)
    kind = after.method.split(" ")[0].replace("_", " ")
    return f"| {name} | {before.n_options} | {before.n} | {figures} | {kind} | {' | '.join(shares)} |\n"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", help="Directory of the model; models/plain by default, made where it is missing.")
    parser.add_argument("--rows", type=int, default=240, help="at most so many of each set")
    parser.add_argument("--only", choices=list(SETS), help="read this set and print its row of the table")
    parser.add_argument("--reads", type=Path, default=Path("out/real_sets"), help="where reads are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/real_sets.md"))
    given = parser.parse_args()
    asked = json.loads((given.data / "tasks.json").read_text(encoding="utf-8"))
    tasks = {name: task_of(name, one, asked) for name, one in SETS.items() if given.only in (None, name)}
    sets = {
        name: rows_of(given.data / f"{SETS[name].file}.jsonl", task.spec.question, given.rows)
        for name, task in tasks.items()
    }
    model = given.model or str(export_demo_model(Path("models/plain"), plain=True))
    engine = await VllmEngine.start(VllmSettings(model=model))
    table = ""
    try:
        pipeline = DecidePipeline(engine, max_input_tokens=engine.identity.max_model_len)
        for name, task in tasks.items():
            began = time.perf_counter()
            reader = PipelineReader(pipeline, task)
            readings = await read_rows(reader, sets[name].rows, cache=given.reads / f"{task.name}.jsonl")
            row = judge(name, readings, sets[name], task, reader.readout)
            table += row
            print(f"{row.strip()} {time.perf_counter() - began:.0f} s", flush=True)
    finally:
        await engine.aclose()
    if given.only is None:
        given.out.write_text(PAGE.format(rows=f"{given.rows:,}", table=HEAD + table), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
