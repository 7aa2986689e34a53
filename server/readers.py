"""Where readings come from: a pipeline in this process."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from demur.decision.labelled import LabelledRow
from demur.decision.readout import Readout
from demur.decision.task import ReadoutKind, Task
from demur.server.calibrated import pins
from demur.server.decide import DecidePipeline
from demur.server.readings import TrainedOn
from demur.server.types import DecideRequest, Decision


class PipelineReader:
    """Implements `Reader` on a decide pipeline. No bundle is applied: questions are asked without their task."""

    def __init__(self, pipeline: DecidePipeline, task: Task) -> None:
        prompt = pipeline.prompts.compile(task.spec)
        self.pins: Mapping[str, str] = pins(task.spec, prompt, pipeline.engine.identity, pipeline.room(prompt))
        self.model = pipeline.engine.identity.name
        self.readout: ReadoutKind = prompt.plan.kind
        self._pipeline = pipeline
        self._task = task

    async def read(self, row: LabelledRow) -> Readout:
        """See `Reader.read`."""
        if row.hash in self._pipeline.engine.identity.trained_on:
            raise TrainedOn
        spec = self._task.spec if row.own is None else replace(self._task.spec, question=row.own)
        return raw_readout(await self._pipeline.decide(DecideRequest(spec, row.text)))


def raw_readout(decision: Decision) -> Readout:
    """The readout behind a decision that no bundle was applied to; its scores are normalised."""
    with np.errstate(divide="ignore"):
        scores = np.log(decision.probabilities)
    return Readout(scores, scores, decision.label_mass)
