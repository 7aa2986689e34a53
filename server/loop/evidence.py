"""From audits to what may certify or fit: rows that are drawn like the traffic, whatever their labels are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from demur.decision.readout import Readout
from demur.server.store.records import AuditRecord


@dataclass(frozen=True, slots=True)
class Evidence:
    """Audits in drawn order, thinned to one rate. `label` is None where it never came; `rate` is that of all rows.

    `partial`: how many audits stand for some verdicts only, since others were not drawn at all; they are left out.
    """

    audits: tuple[AuditRecord, ...]
    rate: float
    partial: int = 0

    def readings(self) -> list[Readout]:
        """What the model said of each."""
        return [audit.decision.reading for audit in self.audits]

    def labels(self) -> list[int | None]:
        """The option that each label names."""
        return [_index(audit) for audit in self.audits]


def evidence(audits: Iterable[AuditRecord], *, bundle: str, now: datetime) -> Evidence:
    """What the audits of one bundle show at `now`.

    It ends before the oldest audit that may still get its label: what is labelled first need not be like the rest.
    Decisions are drawn at rates that depend on the verdict, so only those are kept that the smallest of the rates in
    force would have drawn too, by the same hash. Rates change: when a certificate is withdrawn, with a little delay in
    other processes, or by the task's file. All that was drawn while the smallest was below the rate that leaves most
    rows is left out, which no more depends on verdicts or labels. An audit past its deadline is kept without a label.
    What was erased is as if it had not been drawn, whatever its label.
    """
    rows = []
    for audit in audits:
        if audit.decision.bundle != bundle:
            continue
        if audit.label is None and audit.due > now and not audit.decision.erased:
            break
        rows.append(audit)
    partial = sum(audit.least_rate <= 0.0 for audit in rows)
    rates = sorted({audit.least_rate for audit in rows if audit.least_rate > 0.0})
    thinned = [(rate, _thinned(rows, rate)) for rate in rates]
    rate, kept = max(thinned, key=lambda one: len(one[1]), default=(0.0, []))
    return Evidence(tuple(kept), rate, partial)


def _thinned(rows: Sequence[AuditRecord], rate: float) -> list[AuditRecord]:
    """Those that are drawn at this rate, whatever their verdict."""
    return [audit for audit in rows if audit.least_rate >= rate > audit.decision.draw.u and not audit.decision.erased]


def _index(audit: AuditRecord) -> int | None:
    names = audit.decision.options
    return names.index(audit.label) if audit.label in names else None
