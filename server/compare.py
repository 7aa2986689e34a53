"""Which readout suits a task: the same inputs read every way."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from demur.decision.errors import LabelError
from demur.decision.task import LengthHandling, ReadoutKind, ReadoutSpec, Task
from demur.server.decide import DecidePipeline
from demur.server.types import DecideRequest

#: One read, or one for every distinct prefix of the options' tokens.
READOUTS = (ReadoutSpec(ReadoutKind.LETTER), *(ReadoutSpec(ReadoutKind.TEXT, length) for length in LengthHandling))


@dataclass(frozen=True, slots=True)
class ReadoutTrial:
    """How one readout did: mean label mass, and the share of right decisions where labels are known."""

    readout: ReadoutSpec
    n: int
    label_mass: float
    accuracy: float | None
    note: str | None

    @property
    def name(self) -> str:
        """The readout as a task file writes it."""
        return "letter" if self.readout.kind is ReadoutKind.LETTER else f"text, {self.readout.length.value}"


async def compare_readouts(
    pipeline: DecidePipeline, task: Task, rows: Sequence[tuple[str, str | None]], *, at_once: int = 32
) -> list[ReadoutTrial]:
    """Reads `rows`, pairs of an input and its label or None, by every readout that tells the options apart."""
    trials = []
    for readout in READOUTS:
        spec = replace(task.spec, readout=readout)
        try:
            note = pipeline.prompts.compile(spec).plan.note
        except LabelError:
            continue
        places = asyncio.Semaphore(at_once)

        async def read(text: str, request: DecideRequest, places: asyncio.Semaphore = places) -> tuple[str, float]:
            async with places:
                decision = await pipeline.decide(replace(request, input=text))
            return decision.name, decision.label_mass

        request = DecideRequest(spec, "", task, task.policy)
        answers = await asyncio.gather(*(read(text, request) for text, _ in rows))
        known = [name == label for (name, _), (_, label) in zip(answers, rows, strict=True) if label is not None]
        trials.append(
            ReadoutTrial(
                readout,
                len(answers),
                sum(mass for _, mass in answers) / len(answers),
                sum(known) / len(known) if known else None,
                note,
            )
        )
    return trials
