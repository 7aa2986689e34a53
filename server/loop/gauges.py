"""The live state as Prometheus gauges. They are set when the state changes, so a scrape computes nothing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from demur.calibration.drift import Signal
from demur.calibration.monitor import State
from demur.server.exposition import Gauges
from demur.server.loop.live import LiveView
from demur.server.loop.renewal import Renewed, Result
from demur.server.loop.state import GuaranteeStatus, TaskStatus
from demur.server.loop.traffic import Traffic
from demur.server.loop.window import ReliabilityBin

_RELIABILITY = ("p_correct", "accuracy", "audits")
_STATES: tuple[State, ...] = get_args(State)


class LoopGauges:
    """Names as in docs/monitoring.md. `slice` is empty where a certificate has no slices."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, help_: str, *labels: str) -> Gauge:
            return Gauge(f"demur_{name}", help_, labels, registry=registry)

        self.calibration_error = gauge("calibration_error", "Error of p_correct in audits.", "task", "estimator")
        self.noise_floor = gauge(
            "calibration_error_noise_floor", "The ece that a perfectly calibrated model would show.", "task"
        )
        self.error_limit = gauge(
            "calibration_error_limit", "The ece that a perfectly calibrated model passes in 1% of windows.", "task"
        )
        self.brier = gauge("brier_score", "Brier score in audits, summed over options.", "task")
        self.reliability = Gauges(
            "demur_reliability", "By tenths of p_correct: its mean, accuracy and audits.", ("task", "bin", "value")
        )
        self.accuracy = gauge("live_accuracy", "Share of right decisions in audits.", "task")
        self.risk = gauge(
            "trusted_risk", "Error among trusted decisions since the certificate.", "task", "slice", "bound"
        )
        self.risk_limit = gauge("trusted_risk_limit", "Alpha of the certificate.", "task", "slice")
        self.log_evalue = gauge("guarantee_log_evalue", "Evidence against the certificate, in nats.", "task", "slice")
        self.log_threshold = gauge(
            "guarantee_log_threshold", "The evidence that withdraws the certificate.", "task", "slice"
        )
        self.state = gauge("certificate_state", "1 for the state that the certificate is in.", "task", "slice", "state")
        self.audits = gauge("audits", "Audits without a label, in time (open) or not (expired).", "task", "state")
        self.expected_accuracy = gauge(
            "expected_accuracy", "Mean p_correct of the last decisions of this process.", "task"
        )
        self.drift = gauge(
            "drift", "Distance of the last decisions of this process from the reference.", "task", "signal"
        )
        self.drift_limit = gauge(
            "drift_limit", "What drift passes in at most 1% of windows without any.", "task", "signal"
        )
        self.state_age = gauge("state_age_seconds", "Since the store was last read.")
        self.recalibrations = Counter(
            "demur_recalibrations", "Recalibrations tried.", ("task", "outcome"), registry=registry
        )
        self.recertifications = Counter(
            "demur_recertifications", "Recertifications tried.", ("task", "outcome"), registry=registry
        )
        self._counting: set[str] = set()
        self._shown: tuple[Mapping[str, GuaranteeStatus], Mapping[str, TaskStatus]] = ({}, {})

    def show(self, view: LiveView, served: Mapping[str, tuple[str, ...]]) -> None:
        """Shows tasks, and the certificates (by key) that each is served with now."""
        before, tasks_before = self._shown
        shown = {key: view.guarantees[key] for keys in served.values() for key in keys if key in view.guarantees}
        for key in before.keys() - shown.keys():
            self._forget(before[key], shown)
        for key, status in shown.items():
            if before.get(key) != status:
                self._guarantee(status)
        # Of a task that is not served with a bundle any more only its audits are left.
        tasks = {
            task: status if task in served else replace(status, calibration=None) for task, status in view.tasks.items()
        }
        for task, status_ in tasks.items():
            if tasks_before.get(task) != status_:
                self._task(task, status_)
        for task in served.keys() - self._counting:
            self._begin_counting(task)
        self._shown = shown, tasks

    def count_renewal(self, task: str, renewed: Renewed) -> None:
        """Counts a renewal that was tried."""
        counter = self.recalibrations if renewed.kind == "recalibrate" else self.recertifications
        counter.labels(task, renewed.outcome).inc()

    def _begin_counting(self, task: str) -> None:
        """From 0 on: the first renewal in weeks is to be an increase, and not a series that appears."""
        for counter in (self.recalibrations, self.recertifications):
            for outcome in get_args(Result):
                counter.labels(task, outcome)
        self._counting.add(task)

    def traffic(self, task: str, traffic: Traffic) -> None:
        """Shows a task's last decisions, and nothing of those under a bundle before."""
        _show(self.expected_accuracy, traffic.expected_accuracy, task)
        values = {} if traffic.drift is None else traffic.drift.values
        for signal in get_args(Signal):
            _show(self.drift, values.get(signal), task, signal)
            _show(self.drift_limit, traffic.limits.get(signal), task, signal)

    def _guarantee(self, status: GuaranteeStatus) -> None:
        record = status.record
        at = record.task, record.slice or ""
        for bound, value in (("estimate", status.estimate), ("upper", status.upper), ("recent", status.recent)):
            # Labels may have stopped so long ago that none is recent any more.
            _show(self.risk, None if value is None else round(value, 9), *at, bound)
        self.risk_limit.labels(*at).set(record.alpha)
        # Audits that came one by one and those of a restart are added up in another order.
        self.log_evalue.labels(*at).set(round(status.log_evalue, 9))
        self.log_threshold.labels(*at).set(status.log_threshold)
        for state in _STATES:
            self.state.labels(*at, state).set(state == status.state)

    def _forget(self, status: GuaranteeStatus, shown: Mapping[str, GuaranteeStatus]) -> None:
        """Takes away what a certificate showed that is not served any more, unless another has its place."""
        record = status.record
        if any((one.record.task, one.record.slice) == (record.task, record.slice) for one in shown.values()):
            # The other may have no labels yet.
            for bound in ("estimate", "recent"):
                _remove(self.risk, record.task, record.slice or "", bound)
            return
        at = record.task, record.slice or ""
        for bound in ("estimate", "upper", "recent"):
            _remove(self.risk, *at, bound)
        for gauge in (self.risk_limit, self.log_evalue, self.log_threshold):
            _remove(gauge, *at)
        for state in _STATES:
            _remove(self.state, *at, state)

    def _task(self, task: str, status: TaskStatus) -> None:
        self.audits.labels(task, "open").set(status.open)
        self.audits.labels(task, "expired").set(status.expired)
        shown = status.calibration
        self._reliability(task, () if shown is None else shown.reliability)
        values: tuple[tuple[Gauge, tuple[str, ...], float | None], ...] = (
            (self.accuracy, (task,), None if shown is None else shown.accuracy),
            (self.brier, (task,), None if shown is None else shown.brier),
            (self.noise_floor, (task,), None if shown is None else shown.noise_floor),
            (self.error_limit, (task,), None if shown is None else shown.ece_limit),
            (self.calibration_error, (task, "ece"), None if shown is None else shown.ece),
            (self.calibration_error, (task, "debiased"), None if shown is None else shown.debiased),
        )
        for gauge, labels, value in values:
            _show(gauge, value, *labels)

    def _reliability(self, task: str, bins: tuple[ReliabilityBin, ...]) -> None:
        rows: dict[tuple[str, ...], float] = {
            (task, f"{one.low:.1f}", value): float(getattr(one, value)) for one in bins for value in _RELIABILITY
        }
        self.reliability.show(task, rows)


def _show(gauge: Gauge, value: float | None, *labels: str) -> None:
    if value is None:
        _remove(gauge, *labels)
    else:
        gauge.labels(*labels).set(value)


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        return
