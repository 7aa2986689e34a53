"""From audits to what may certify or fit: rows that are drawn like the traffic, whatever their labels are."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from demur.decision.readout import Readout
from demur.server.store.records import AuditRecord


@dataclass(frozen=True, slots=True)
class Evidence:
    """Audits in drawn order, thinned to one rate. `label` is None where it never came; `rate` is that of all rows."""

    audits: tuple[AuditRecord, ...]
    rate: float

    def readings(self) -> list[Readout]:
        """What the model said of each."""
        return [audit.decision.reading for audit in self.audits]

    def labels(self) -> list[int | None]:
        """The option that each label names."""
        return [_index(audit) for audit in self.audits]


def evidence(audits: Iterable[AuditRecord], *, bundle: str, now: datetime) -> Evidence:
    """What the audits of one bundle show at `now`.

    It ends before the oldest audit that may still get its label: what is labelled first need not be like the rest.
    Decisions are drawn at rates that depend on the verdict, so only those are kept that the smallest of the rates
    would have drawn too, by the same hash. An audit past its deadline is kept without a label. What was erased is as
    if it had not been drawn, whatever its label.
    """
    rows = []
    for audit in audits:
        if audit.decision.bundle != bundle:
            continue
        if audit.label is None and audit.due > now and not audit.decision.erased:
            break
        rows.append(audit)
    rate = min((audit.decision.draw.rate for audit in rows), default=0.0)
    kept = [audit for audit in rows if audit.decision.draw.u < rate and not audit.decision.erased]
    return Evidence(tuple(kept), rate)


def _index(audit: AuditRecord) -> int | None:
    names = audit.decision.options
    return names.index(audit.label) if audit.label in names else None
