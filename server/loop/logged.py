"""A decider whose decisions are logged, and audited by chance."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np

from demur.server.loop.audits import Auditor
from demur.server.loop.log import DecisionLog
from demur.server.store.records import DecisionRecord, Draw, ShadowRecord
from demur.server.store.rows import kept_text
from demur.server.store.store import Store
from demur.server.types import Decider, DecideRequest, Decision, Reason, Verdict

ADHOC = "adhoc"


class LoggedDecider:
    """Decides as another does. While audits cannot be kept, what was drawn is not trusted, and in the end nothing is.

    `log_adhoc`: inline questions are logged too; they are never audited.
    """

    def __init__(self, decider: Decider, store: Store, log: DecisionLog, auditor: Auditor, *, log_adhoc: bool) -> None:
        self._decider = decider
        self._store = store
        self._log = log
        self._auditor = auditor
        self._log_adhoc = log_adhoc

    async def decide(self, request: DecideRequest) -> Decision:
        """See `Decider.decide`."""
        decision = await self._decider.decide(request)
        task = request.task
        if task is None:
            if self._log_adhoc:
                self._put(decision, Draw(self._store.u(decision.id), 0.0, drawn=False))
            return decision
        draw = self._auditor.draw(decision.id, task, decision.verdict)
        exhausted = self._auditor.count()
        if draw.drawn and await self._auditor.keep(self._record(decision, draw, datetime.now(UTC)), task):
            return replace(decision, audit=True)
        kept = replace(draw, drawn=False) if draw.drawn else draw
        # An outage makes no likely answer of what is stood behind by nobody.
        if (draw.drawn and decision.verdict is not Verdict.DEFER) or (exhausted and decision.verdict is Verdict.TRUST):
            decision = replace(
                decision,
                verdict=Verdict.REVIEW,
                reason=Reason.AUDIT_STORE_UNAVAILABLE,
                reason_detail="the store does not take audits",
                guarantee=None,
            )
        self._put(decision, kept)
        # A copy that nobody looks at is not made.
        return replace(decision, audit=False) if task.show_audit else decision

    def _put(self, decision: Decision, draw: Draw) -> None:
        self._log.put(decision.id, partial(self._record, decision, draw, datetime.now(UTC)))

    def _record(self, decision: Decision, draw: Draw, at: datetime) -> DecisionRecord:
        request, reading = decision.request, decision.reading
        task, store = request.task, self._store
        if reading is None:
            with np.errstate(divide="ignore"):
                logprobs = scores = np.log(decision.probabilities)
        else:
            logprobs, scores = reading.logprobs, reading.scores
        return DecisionRecord(
            id=decision.id,
            task=ADHOC if task is None else task.name,
            task_hash="" if task is None else task.content_hash,
            at=at,
            options=request.spec.question.names,
            option=decision.index,
            verdict=decision.verdict,
            reason=decision.reason,
            probabilities=decision.probabilities,
            logprobs=logprobs,
            scores=scores,
            label_mass=decision.label_mass,
            p_correct=decision.p_correct,
            score=decision.score,
            bundle=None if decision.calibration is None else decision.calibration.bundle,
            guarantee=decision.guarantee,
            slice=decision.slice,
            model=decision.model,
            mode=request.spec.mode,
            readout=decision.readout,
            input_hash=store.hash("input", request.input),
            draw=draw,
            input=request.input if task is not None and task.log_inputs else None,
            key=request.key,
            subject=None if request.subject is None else store.hash("subject", request.subject),
            shadow=_shadow(decision),
        )


def _shadow(decision: Decision) -> ShadowRecord | None:
    one = decision.shadow
    if one is None:
        return None
    name = decision.request.spec.question.options[one.index].name
    return ShadowRecord(kept_text(name), str(one.verdict), str(one.reason), one.p_correct, one.bundle, one.policy)
