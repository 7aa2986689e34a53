"""How many verdicts change when certifying rows are read again: one at a time, then twice with 64 callers at once.

    .venv/bin/python -m benchmarks.rereading        # 2 minutes on two cores; the last line is one JSON object

The rows are those of a shipped bundle, its calibrator and its certified threshold judge them; `verdicts_changed` counts
rows whose trust differs from the first pass in the worse of the other two, and `share` is that of `rows`.
"""

import argparse
import asyncio
import json
from pathlib import Path

import numpy as np

from demur.calibration import is_trusted
from demur.decision.bundle import read_bundle
from demur.decision.labelled import read_labelled
from demur.decision.taskfile import load_task
from demur.server.calibrated import Calibrated
from demur.server.decide import DecidePipeline
from demur.server.engines.vllm_engine import VllmEngine
from demur.server.engines.vllm_setup import VllmSettings
from demur.server.readers import PipelineReader
from demur.server.readings import read_rows


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--name", default="voice_intent")
    parser.add_argument("--rows", type=int, default=300, help="at most so many of the certifying rows, the first ones")
    given = parser.parse_args()
    task = load_task(Path(f"examples/tasks/{given.name}.yaml"))
    data = read_labelled(Path(f"examples/data/{given.name}.jsonl"), task.spec.question)
    bundle = Calibrated.of(read_bundle(Path(f"examples/bundles/{given.name}")))
    assert bundle.guarantee is not None
    assert bundle.guarantee.trusted is not None
    threshold = bundle.guarantee.trusted.threshold
    assert threshold is not None
    engine = await VllmEngine.start(VllmSettings(model=given.model))
    try:
        pipeline = DecidePipeline(engine, max_input_tokens=engine.identity.max_model_len)
        reader = PipelineReader(pipeline, task)
        passes = []
        for concurrency in (1, 64, 64):
            read = await read_rows(reader, data.rows[: given.rows], concurrency=concurrency)
            applied = [bundle.apply(read.readout(index)) for index in range(len(read.rows))]
            passes.append((np.array([one.score for one in applied]), np.array([one.index for one in applied])))
    finally:
        await engine.aclose()
    (alone, decided), *others = passes
    changed = max(int((is_trusted(score, threshold) != is_trusted(alone, threshold)).sum()) for score, _ in others)
    result = {
        "rows": len(alone),
        "trusted": int(is_trusted(alone, threshold).sum()),
        "threshold": threshold,
        "largest_difference": max(float(np.abs(score - alone).max()) for score, _ in others),
        "decisions_changed": max(int((index != decided).sum()) for _, index in others),
        "verdicts_changed": changed,
        "share": changed / len(alone),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main())
