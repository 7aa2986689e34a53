"""Renewing certificates and calibrators from audits, under guard.

Recertify: the same calibrator, thresholds tested anew. The candidate is the bundle that is served, and the audits that
certify were all drawn under it: after its certificate was issued, or after that was withdrawn. Recalibrate: fitted on
the older half of those audits, and adopted only if it is better on the newer half beyond chance and is certified.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Literal

import numpy as np
from sqlalchemy import Connection

from demur.calibration import VerdictCertificates, certify_verdicts
from demur.decision.task import PolicySpec, Task
from demur.server.bundles import ServedBundle
from demur.server.calibrated import Calibrated, min_label_mass
from demur.server.errors import Conflict
from demur.server.loop.candidate import Remade, certificate_document, refit, remake
from demur.server.loop.evidence import Evidence, evidence
from demur.server.loop.shelf import Shelf
from demur.server.store.attempts import begin_attempt, finish_attempt
from demur.server.store.decisions import drawn
from demur.server.store.guarantees import guarantees
from demur.server.store.records import Attempt, AttemptKind, GuaranteeRecord
from demur.server.store.store import Store

Result = Literal["adopted", "nothing_certified", "no_improvement", "too_few_audits"]

#: A refit wants so many audits in each half; a certificate wants what its level needs without any error.
_LEAST_TO_FIT = 100


@dataclass(frozen=True, slots=True)
class Renewed:
    """What came of a renewal.

    `audits` stood for traffic, `certifying` of them. `attempt` is None where no label was tested; `delta` is what it
    spent. `improvement` is in nats a decision, with the half-width of its 95% interval. `version` where adopted.
    """

    kind: AttemptKind
    outcome: Result
    audits: int
    certifying: int = 0
    attempt: int | None = None
    delta: float | None = None
    threshold: float | None = None
    improvement: float | None = None
    margin: float | None = None
    bundle: str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is promised: as the certificate that is renewed did."""

    alpha: float
    beta: float
    delta: float
    valid_for: timedelta | None


class Renewal:
    """One at a time in this process; attempts of several processes are counted in the store together."""

    def __init__(
        self,
        store: Store,
        shelf: Shelf,
        *,
        count: Callable[[str, Renewed], None] = lambda _task, _renewed: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._count = count
        self._clock = clock
        self._lock = asyncio.Lock()

    async def recertify(self, task: Task, served: ServedBundle, policy: PolicySpec, *, by: str | None) -> Renewed:
        """Tests thresholds anew on audits, and adopts what they certify.

        Raises Conflict for a bundle that cannot be renewed, StoreUnavailable.
        """
        async with self._lock:
            calibrated = _renewable(served)
            record, rows = await self._evidence(task, calibrated)
            renewed = await self._certified("recertify", task, served, policy, record, rows, Remade(calibrated), by)
        self._count(task.name, renewed)
        return renewed

    async def recalibrate(self, task: Task, served: ServedBundle, policy: PolicySpec, *, by: str | None) -> Renewed:
        """Fits on older audits, and adopts what is better on newer ones and certified. Raises as `recertify`."""
        async with self._lock:
            renewed = await self._recalibrate(task, served, policy, by)
        self._count(task.name, renewed)
        return renewed

    async def _recalibrate(self, task: Task, served: ServedBundle, policy: PolicySpec, by: str | None) -> Renewed:
        calibrated = _renewable(served)
        record, rows = await self._evidence(task, calibrated)
        half = len(rows.audits) // 2
        if half < _LEAST_TO_FIT:
            return Renewed("recalibrate", "too_few_audits", len(rows.audits))
        older, newer = Evidence(rows.audits[:half], rows.rate), Evidence(rows.audits[half:], rows.rate)
        candidate = await asyncio.to_thread(refit, calibrated, task, older)
        gain, margin = await asyncio.to_thread(candidate.improvement, calibrated, newer)
        if not gain - margin > 0.0:
            return Renewed("recalibrate", "no_improvement", len(rows.audits), improvement=gain, margin=margin)
        remade = await asyncio.to_thread(remake, calibrated, task, candidate, served.readout)
        stands = record is not None and record.state in ("valid", "starved")
        if stands and candidate.same_trusted_set(calibrated):
            version = await self._shelf.adopt(task.name, remade.calibrated, by)
            return Renewed(
                "recalibrate",
                "adopted",
                len(rows.audits),
                improvement=gain,
                margin=margin,
                bundle=version.bundle,
                version=version.version,
            )
        return await self._certified("recalibrate", task, served, policy, record, newer, remade, by, gain, margin)

    async def _evidence(self, task: Task, calibrated: Calibrated) -> tuple[GuaranteeRecord | None, Evidence]:
        key = None if calibrated.guarantee is None else calibrated.guarantee.key

        def read(connection: Connection) -> tuple[GuaranteeRecord | None, Evidence]:
            record = next(iter(guarantees(connection, [] if key is None else [key])), None)
            audits = drawn(connection, self._store.options, after=_start(record), task=task.name)
            return record, evidence(audits, bundle=calibrated.bundle.id, now=self._clock())

        return await self._store.read(read)

    async def _certified(
        self,
        kind: AttemptKind,
        task: Task,
        served: ServedBundle,
        policy: PolicySpec,
        record: GuaranteeRecord | None,
        rows: Evidence,
        remade: Remade,
        by: str | None,
        gain: float | None = None,
        margin: float | None = None,
    ) -> Renewed:
        """One attempt at certifying a candidate with audits that it was not fitted on."""
        terms, calibrated = _terms(remade.calibrated), remade.calibrated
        mass = min_label_mass(policy, served.readout)
        usable = [i for i, reading in enumerate(rows.readings()) if reading.label_mass >= mass]
        if len(usable) < _fewest(terms):
            return Renewed(kind, "too_few_audits", len(rows.audits), len(usable), improvement=gain, margin=margin)
        now = self._clock()
        question = _question(task.name, served.calibrated.bundle.id, _start(record))
        attempt = await self._store.write(
            lambda connection: begin_attempt(connection, task.name, question, kind, terms.delta, now)
        )
        certificates = await asyncio.to_thread(_certify, calibrated, rows, usable, terms, attempt, now)
        outcome: Result = "nothing_certified" if certificates.trusted.threshold is None else "adopted"
        version = None
        if outcome == "adopted":
            document = certificate_document(certificates, policy, served.readout)
            said = {"attempt": attempt.number, "audits": len(rows.audits), "rate": rows.rate, "kind": kind}
            bundle = await asyncio.to_thread(remade.certified, document, said)
            version = await self._shelf.adopt(task.name, bundle, by)
        await self._store.write(partial(_finish, attempt, outcome))
        return Renewed(
            kind,
            outcome,
            len(rows.audits),
            len(usable),
            attempt.number,
            attempt.delta,
            certificates.trusted.threshold,
            gain,
            margin,
            None if version is None else version.bundle,
            None if version is None else version.version,
        )


def _renewable(served: ServedBundle) -> Calibrated:
    if served.mismatches:
        raise Conflict(f"the bundle was made for another {', '.join(served.mismatches)}; make a new one")
    guarantee = served.calibrated.guarantee
    if guarantee is not None and guarantee.slice_by is not None:
        raise Conflict("certificates of slices are not renewed from audits; make a new bundle of labelled rows")
    return served.calibrated


def _start(record: GuaranteeRecord | None) -> int:
    """The last audit that does not certify: those after it are new to the certificate, and to what withdrew it."""
    if record is None:
        return 0
    return record.first_audit_seq if record.ended_audit_seq is None else record.ended_audit_seq


def _question(task: str, bundle: str, start: int) -> str:
    return sha256(json.dumps([task, bundle, start]).encode()).hexdigest()[:32]


def _terms(calibrated: Calibrated) -> _Terms:
    guarantee = calibrated.guarantee
    if guarantee is None or guarantee.trusted is None:
        return _Terms(0.05, 0.30, 0.05, timedelta(days=90))
    trusted, rest = guarantee.trusted, guarantee.not_deferred
    valid_for = None if trusted.expires_at is None else trusted.expires_at - trusted.issued_at
    # Trust and answers have half of delta each.
    return _Terms(trusted.alpha, 0.30 if rest is None else rest.alpha, 2 * trusted.delta, valid_for)


def _fewest(terms: _Terms) -> int:
    """Rows without which no attempt can succeed, so that none is spent: a first attempt, all of them right."""
    return int(np.ceil(np.log(terms.delta / 4) / np.log1p(-terms.alpha)))


def _certify(
    calibrated: Calibrated, rows: Evidence, usable: list[int], terms: _Terms, attempt: Attempt, now: datetime
) -> VerdictCertificates:
    readings, labels = rows.readings(), rows.labels()
    applied = [calibrated.apply(readings[i]) for i in usable]
    split = calibrated.score_name == "p_correct" or calibrated.calibrator.moves_decision
    return certify_verdicts(
        np.array([one.score for one in applied]),
        # A label that never came counts as an error.
        np.array([one.index == labels[i] for one, i in zip(applied, usable, strict=True)]),
        alpha=terms.alpha,
        beta=terms.beta,
        delta=terms.delta,
        route="split" if split else "label_free",
        score_name=calibrated.score_name,
        attempt=attempt.number,
        issued_at=now,
        valid_for=terms.valid_for,
    )


def _finish(attempt: Attempt, outcome: Result, connection: Connection) -> None:
    finish_attempt(connection, attempt, outcome)
