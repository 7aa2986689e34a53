"""Renewing certificates and calibrators from audits, under guard.

Recertify: the same calibrator, thresholds tested anew. The candidate is the bundle that is served, and the audits that
certify were all drawn under it: after its certificate was issued, or after that was withdrawn. Recalibrate: fitted on
the older half of those audits, and adopted only if it is better on the newer half beyond chance and is certified.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Literal

from sqlalchemy import Connection

from demur.decision.task import PolicySpec, Task
from demur.server.bundles import ServedBundle
from demur.server.calibrated import Calibrated, min_label_mass, policy_hash
from demur.server.certificate_file import certificate_document
from demur.server.errors import Conflict
from demur.server.loop.candidate import Remade, refit, remake
from demur.server.loop.certifying import Terms, beside, certify, slices_of, usable
from demur.server.loop.evidence import Evidence, evidence
from demur.server.loop.shelf import Shelf, watched
from demur.server.store.attempts import begin_attempt, finish_attempt
from demur.server.store.decisions import drawn
from demur.server.store.errors import Superseded
from demur.server.store.guarantees import guarantees
from demur.server.store.records import Attempt, AttemptKind, AuditRecord, BundleVersion, GuaranteeRecord
from demur.server.store.store import Store

Result = Literal["adopted", "nothing_certified", "no_improvement", "too_few_audits"]

#: A refit wants so many audits in each half; a certificate wants what its level needs without any error.
_LEAST_TO_FIT = 100
#: Audits that are read at once.
_PAGE = 5_000


@dataclass(frozen=True, slots=True)
class Renewed:
    """What came of a renewal.

    `audits` stood for traffic, `certifying` of them. `attempt` is None where no label was tested; `delta` is what it
    spent. `threshold`, or `slices` where traffic is parted: what was certified anew, None where nothing was.
    `improvement` is in nats a decision, with the half-width of its 95% interval. `version` where adopted.
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
    slices: Mapping[str, float | None] = field(default_factory=dict)


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

    async def recertify(
        self, task: Task, served: ServedBundle, policy: PolicySpec, *, by: str | None, only_after: int | None = None
    ) -> Renewed:
        """Tests thresholds anew on audits, and adopts what they certify.

        Raises Conflict for a bundle that cannot be renewed, StoreUnavailable, and Superseded instead of an attempt if
        the task has had more of them than `only_after`.
        """
        async with self._lock:
            calibrated = _renewable(task, served)
            records, rows = await self._evidence(task, calibrated)
            attempt = _Attempted("recertify", task, served, policy, records, by, only_after)
            renewed = await self._certified(attempt, rows, Remade(calibrated), same_trusted_set=True)
        self._count(task.name, renewed)
        return renewed

    async def recalibrate(self, task: Task, served: ServedBundle, policy: PolicySpec, *, by: str | None) -> Renewed:
        """Fits on older audits, and adopts what is better on newer ones and certified. Raises as `recertify`."""
        async with self._lock:
            renewed = await self._recalibrate(task, served, policy, by)
        self._count(task.name, renewed)
        return renewed

    async def _recalibrate(self, task: Task, served: ServedBundle, policy: PolicySpec, by: str | None) -> Renewed:
        calibrated = _renewable(task, served)
        records, rows = await self._evidence(task, calibrated)
        half = len(rows.audits) // 2
        older, newer = Evidence(rows.audits[:half], rows.rate), Evidence(rows.audits[half:], rows.rate)
        if half < _LEAST_TO_FIT or all(label is None for label in older.labels()):
            return Renewed("recalibrate", "too_few_audits", len(rows.audits))
        candidate = await asyncio.to_thread(refit, calibrated, task, older)
        if candidate.selection.refusal:
            return Renewed("recalibrate", "no_improvement", len(rows.audits))
        remade = await asyncio.to_thread(remake, calibrated, task, candidate, served.readout)
        better = partial(candidate.improvement, calibrated, newer)
        stands = bool(records) and all(record.state in ("valid", "starved") for record in records)
        same = candidate.same_trusted_set(calibrated)
        if not (stands and same):
            attempt = _Attempted("recalibrate", task, served, policy, records, by)
            return await self._certified(attempt, newer, remade, same_trusted_set=same, better=better)
        gain, margin = await asyncio.to_thread(better)
        seen = Renewed("recalibrate", "no_improvement", len(rows.audits), improvement=gain, margin=margin)
        if not gain - margin > 0.0:
            return seen
        version = await self._adopt(task.name, remade.calibrated, served, by, ())
        return replace(seen, outcome="adopted", bundle=version.bundle, version=version.version)

    async def _evidence(self, task: Task, calibrated: Calibrated) -> tuple[list[GuaranteeRecord], Evidence]:
        keys = [record.key for record in watched(task.name, calibrated).guarantees]
        records = await self._store.read(lambda connection: guarantees(connection, keys))
        now, audits, after = self._clock(), list[AuditRecord](), _start(records)
        # Page by page: all audits of a quarter of a year take longer than the store is given for an answer. Others are
        # drawn meanwhile, so that one need not come to an empty page.
        full = True
        while full:
            page = await self._store.read(partial(_page, self._store, task.name, after))
            audits += page
            after, full = page[-1].seq if page else after, len(page) == _PAGE
        found = await asyncio.to_thread(evidence, audits, bundle=calibrated.bundle.id, now=now)
        if found.partial and not found.audits:
            raise Conflict(
                "the audits stand for some verdicts only, since decisions of others were not drawn at all; set the "
                "task's audit.trust, audit.review and audit.defer above 0, and try again once enough have been drawn"
            )
        return records, found

    async def _certified(
        self,
        asked: "_Attempted",
        rows: Evidence,
        remade: Remade,
        *,
        same_trusted_set: bool,
        better: Callable[[], tuple[float, float]] | None = None,
    ) -> Renewed:
        """One attempt at certifying a candidate with audits that it was not fitted on.

        `better` says by how much it is better on them, and the margin. That is a look at labels which certify, so it is
        taken within the attempt: one who looks for nothing until labels come out well would certify too often.
        """
        task, served, calibrated = asked.task, asked.served, remade.calibrated
        terms, mass = Terms.of(calibrated), min_label_mass(asked.policy, served.readout)
        indices = usable(calibrated, rows, mass)
        seen = Renewed(asked.kind, "too_few_audits", len(rows.audits), len(indices))
        if max(Counter(slices_of(calibrated, rows, indices)).values(), default=0) < terms.fewest:
            return seen
        now = self._clock()
        question = _question(task.name, served.calibrated.bundle.id, asked.start)
        attempt = await self._store.write(
            lambda connection: begin_attempt(
                connection, task.name, question, asked.kind, terms.delta, now, only_after=asked.only_after
            )
        )
        seen = replace(seen, attempt=attempt.number, delta=attempt.delta)
        if better is not None:
            gain, margin = await asyncio.to_thread(better)
            seen = replace(seen, outcome="no_improvement", improvement=gain, margin=margin)
            if not gain - margin > 0.0:
                await self._store.write(partial(_finish, attempt, seen.outcome))
                return seen
        issued = await asyncio.to_thread(certify, calibrated, rows, indices, terms, attempt, now)
        thresholds = {value: one.trusted.threshold for value, one in issued.items()}
        outcome: Result = "adopted" if any(one is not None for one in thresholds.values()) else "nothing_certified"
        version = None
        if outcome == "adopted":
            hashed = policy_hash(asked.policy, served.readout)
            document = certificate_document(
                beside(calibrated, issued, policy_hash=hashed if same_trusted_set else None),
                slice_by=task.slice_by,
                policy_hash=hashed,
                attempts=attempt.number,
            )
            said = {"attempt": attempt.number, "audits": len(rows.audits), "rate": rows.rate, "kind": asked.kind}
            bundle = await asyncio.to_thread(remade.certified, document, said)
            try:
                version = await self._adopt(task.name, bundle, served, asked.by, asked.standing)
            except Conflict:
                await self._store.write(partial(_finish, attempt, "superseded"))
                raise
        await self._store.write(partial(_finish, attempt, outcome))
        return replace(
            seen,
            outcome=outcome,
            threshold=thresholds.get(None),
            slices={value: one for value, one in thresholds.items() if value is not None},
            bundle=None if version is None else version.bundle,
            version=None if version is None else version.version,
        )

    async def _adopt(
        self, task: str, renewed: Calibrated, served: ServedBundle, by: str | None, standing: Sequence[str]
    ) -> BundleVersion:
        """Only in place of what was renewed: a rollback that came meanwhile stands, and so does a withdrawal."""
        try:
            return await self._shelf.adopt(task, renewed, by, instead_of=served.calibrated.bundle.id, standing=standing)
        except Superseded as error:
            raise Conflict(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Attempted:
    """What was asked for. `records` are the certificates as they stood when the audits were read."""

    kind: AttemptKind
    task: Task
    served: ServedBundle
    policy: PolicySpec
    records: Sequence[GuaranteeRecord]
    by: str | None
    only_after: int | None = None

    @property
    def start(self) -> int:
        """Audits after this one certify."""
        return _start(self.records)

    @property
    def standing(self) -> tuple[str, ...]:
        """Certificates that were not withdrawn."""
        return tuple(record.key for record in self.records if record.state != "withdrawn")


def _renewable(task: Task, served: ServedBundle) -> Calibrated:
    if served.mismatches:
        raise Conflict(f"the bundle was made for another {', '.join(served.mismatches)}; make a new one")
    if task.slice_by is not None and served.calibrated.guarantee is None:
        raise Conflict("the bundle knows no slice of this task; make a new one of labelled rows")
    return served.calibrated


def _start(records: Sequence[GuaranteeRecord]) -> int:
    """The last audit that does not certify: those after it are new to the certificates, and to what withdrew one.

    Slices are one question with one delta, so all of them begin where the last of them did.
    """
    return max(
        (one.first_audit_seq if one.ended_audit_seq is None else one.ended_audit_seq for one in records), default=0
    )


def _page(store: Store, task: str, after: int, connection: Connection) -> list[AuditRecord]:
    return drawn(connection, store.options, after=after, limit=_PAGE, task=task)


def _question(task: str, bundle: str, start: int) -> str:
    return sha256(json.dumps([task, bundle, start]).encode()).hexdigest()[:32]


def _finish(attempt: Attempt, outcome: Result | Literal["superseded"], connection: Connection) -> None:
    finish_attempt(connection, attempt, outcome)
