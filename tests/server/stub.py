"""A decider without an engine: probabilities from a hash, and states that can be switched."""

import asyncio
import hashlib
from dataclasses import dataclass, field

import numpy as np

from demur.decision.task import Mode
from demur.server.errors import DemurError
from demur.server.types import DecideRequest, Decision, Reason, Timings, Usage, Verdict


@dataclass
class StubDecider:
    """Decides by hashing question, options and input.

    `gate`: decisions wait until it is set. `fails` maps inputs to the error that they raise; `broken` is raised for
    every input. `held` counts decisions that wait at the gate, `cancelled` those that were cancelled there.
    """

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fails: dict[str, Exception] = field(default_factory=dict)
    broken: DemurError | None = None
    held: int = 0
    cancelled: int = 0
    asked: list[DecideRequest] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.gate.set()

    async def decide(self, request: DecideRequest) -> Decision:
        self.asked.append(request)
        if not self.gate.is_set():
            await self._wait()
        if self.broken is not None:
            raise self.broken
        if request.input in self.fails:
            raise self.fails[request.input]
        return answer(request)

    async def _wait(self) -> None:
        self.held += 1
        await self._notify()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.held -= 1
            await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until_held(self, n: int) -> None:
        """Returns when n decisions wait at the gate."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.held == n)


def answer(request: DecideRequest) -> Decision:
    question = request.spec.question
    text = repr((question.text, question.options, request.input)).encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    weights = np.random.default_rng(seed).exponential(size=len(question.options))
    probabilities = weights / weights.sum()
    return Decision(
        id=f"dec_{seed:016x}",
        request=request,
        index=int(np.argmax(probabilities)),
        verdict=Verdict.REVIEW,
        reason=Reason.UNCALIBRATED,
        probabilities=probabilities,
        label_mass=0.9,
        model="stub-model",
        readout=request.spec.readout.kind,
        readout_note=None,
        usage=Usage(len(text), 0, 3 if request.spec.mode is Mode.REASONED else 0, 1),
        timings=Timings(1.0, 0.5),
        thought="Let me think." if request.spec.mode is Mode.REASONED else None,
        thought_finish="stop" if request.spec.mode is Mode.REASONED else None,
    )
