"""What is known of all certificates and of calibration, from audits and labels in their order. No I/O."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from demur.calibration import Outcome
from demur.calibration.monitor import State
from demur.server.loop.process import GuaranteeProcess, Row
from demur.server.loop.window import CalibrationWindow, LabelledAudit, LiveCalibration
from demur.server.store.decisions import Labelled
from demur.server.store.records import AuditRecord, GuaranteeRecord


@dataclass(frozen=True, slots=True)
class GuaranteeStatus:
    """A certificate as it stands. `estimate` is None before the first label, `recent` is not always valid."""

    record: GuaranteeRecord
    state: State
    log_evalue: float
    estimate: float | None
    upper: float
    recent: float | None
    audits: int

    @property
    def log_threshold(self) -> float:
        """The log e-value that withdraws it."""
        return -math.log(self.record.delta)


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """A task's audits that wait for a label, in time and past it, and its calibration while there are labels enough."""

    open: int
    expired: int
    calibration: LiveCalibration | None


class LiveState:
    """Takes audits in drawn order and labels in the order given; any event may come twice."""

    def __init__(self, *, max_missing: float = 0.1) -> None:
        self._max_missing = max_missing
        self._guarantees: dict[str, tuple[GuaranteeRecord, GuaranteeProcess]] = {}
        self._windows: dict[str, tuple[str | None, CalibrationWindow]] = {}
        self._waiting: dict[str, dict[int, float]] = {}
        self._shown: dict[str, LiveCalibration | None] = {}
        self._statuses: dict[str, tuple[int, GuaranteeStatus]] = {}

    def know(self, record: GuaranteeRecord, rows: Iterable[Row] = ()) -> None:
        """Watch a certificate from now on; `rows` are its audits so far."""
        if record.key in self._guarantees:
            return
        withdrawn = record.state == "withdrawn"
        process = GuaranteeProcess(record.alpha, record.delta, max_missing=self._max_missing, withdrawn=withdrawn)
        process.restore(rows)
        self._guarantees[record.key] = record, process

    def knows(self, key: str) -> bool:
        """Whether a certificate is watched."""
        return key in self._guarantees

    def serve(self, task: str, bundle: str | None, labelled: Iterable[Labelled] = ()) -> None:
        """Show a task's calibration under this bundle; `labelled` are its labelled audits so far."""
        if task in self._windows and self._windows[task][0] == bundle:
            return
        window = CalibrationWindow()
        for one in labelled:
            _add(window, one)
        self._windows[task] = bundle, window
        self._shown[task] = None

    def wait(self, task: str, seq: int, due: float) -> None:
        """Count an audit as waiting for its label."""
        self._waiting.setdefault(task, {})[seq] = due

    def drawn(self, audit: AuditRecord) -> None:
        """Take the next audit. Its label, if it has one by now, comes by `labelled`."""
        decision, due = audit.decision, audit.due.timestamp()
        if audit.label is None and not decision.erased:
            self.wait(decision.task, audit.seq, due)
        if decision.guarantee in self._guarantees:
            process = self._guarantees[decision.guarantee][1]
            process.drawn(audit.seq, due)
            if audit.let_go:
                process.let_go(audit.seq)

    def labelled(self, audit: AuditRecord, label: str) -> None:
        """Take a label of an audit; `audit.label` may be a later one already."""
        decision = audit.decision
        self._waiting.get(decision.task, {}).pop(audit.seq, None)
        if decision.guarantee in self._guarantees:
            self._guarantees[decision.guarantee][1].labelled(audit.seq, label != decision.decision)
        self._calibrate(audit, label)

    def falling_due(self, since: float, now: float) -> list[int]:
        """Audits that wait for a label which is due after `since` and by `now`."""
        return [seq for waiting in self._waiting.values() for seq, due in waiting.items() if since < due <= now]

    def erased(self, seq: int, *, before_due: bool) -> None:
        """Wait no longer for the label of an audit; it is missing unless the audit was erased before that was due."""
        for waiting in self._waiting.values():
            waiting.pop(seq, None)
        if before_due:
            for _, process in self._guarantees.values():
                process.let_go(seq)

    def statuses(self, now: float) -> Mapping[str, GuaranteeStatus]:
        """Every watched certificate by key, at the time `now` (seconds since 1970)."""
        return {key: self._status(key, now) for key in self._guarantees}

    def tasks(self, now: float) -> Mapping[str, TaskStatus]:
        """Every task with audits or a bundle, at the time `now`."""
        found = {}
        for task in self._windows.keys() | self._waiting.keys():
            due = self._waiting.get(task, {}).values()
            expired = sum(one <= now for one in due)
            found[task] = TaskStatus(len(due) - expired, expired, self._calibration(task))
        return found

    def _status(self, key: str, now: float) -> GuaranteeStatus:
        record, process = self._guarantees[key]
        process.expire(now)
        expired = record.expires_at is not None and record.expires_at.timestamp() <= now
        revision, status = self._statuses.get(key, (-1, None))
        # Bounds take a millisecond, and most certificates have nothing new at most looks.
        if status is None or revision != process.revision:
            status = _status(record, process, expired)
        elif status.state != (state := process.state(expired=expired)):
            status = replace(status, state=state)
        self._statuses[key] = process.revision, status
        return status

    def _calibration(self, task: str) -> LiveCalibration | None:
        # Estimates are made where labels came, not for every look.
        if self._shown.get(task) is None and task in self._windows:
            self._shown[task] = self._windows[task][1].read()
        return self._shown.get(task)

    def _calibrate(self, audit: AuditRecord, label: str) -> None:
        decision = audit.decision
        bundle, window = self._windows.get(decision.task, (None, None))
        if window is not None and decision.bundle == bundle:
            rate, option, p_correct = decision.draw.rate, decision.option, decision.p_correct
            _add(window, Labelled(audit.seq, rate, option, p_correct, decision.probabilities, decision.options, label))
            self._shown[decision.task] = None


def _add(window: CalibrationWindow, one: Labelled) -> None:
    p = one.probabilities
    if one.label not in one.options or len(p) != len(one.options):  # erased
        return
    right = one.options.index(one.label)
    brier = float(np.square(p).sum() - 2.0 * p[right] + 1.0)
    window.add(LabelledAudit(one.seq, one.rate, right == one.option, one.p_correct, brier))


def _status(record: GuaranteeRecord, process: GuaranteeProcess, expired: bool) -> GuaranteeStatus:
    monitor = process.monitor
    errors, right = process.count(Outcome.ERROR), process.count(Outcome.CORRECT)
    return GuaranteeStatus(
        record,
        process.state(expired=expired),
        monitor.log_evalue,
        errors / (errors + right) if errors + right else None,
        monitor.upper_bound,
        monitor.recent.estimate,
        len(process),
    )
