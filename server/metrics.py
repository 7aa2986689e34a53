"""Prometheus metrics of decisions, and the page that shows them beside the engine's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest

from demur.server.bundles import ServedBundle
from demur.server.exposition import Exposition, Histogram
from demur.server.guarantee import first_end, holds
from demur.server.lifecycle import Phase
from demur.server.types import Decider, DecideRequest, Decision, Standing

ADHOC = "adhoc"
#: Why requests are refused unread, or given up.
SHED = ("queue_full", "deadline", *(phase.value for phase in Phase if phase is not Phase.READY))

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)
_CHANCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 1)
_MASS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 1)


class Part(Protocol):
    """Some metrics as text."""

    def lines(self) -> Iterator[str]:
        """Lines of the page, each with its end."""
        ...


class Metrics:
    """The server's own metrics, in a registry of their own; `engine` are registries shown on the same page."""

    def __init__(self, engine: Sequence[CollectorRegistry] = (REGISTRY,)) -> None:
        self.registry = CollectorRegistry()
        self._engine = engine
        self.decisions = Counter(
            "demur_decisions",
            "Decisions made, also those of a /v1/systemone request that failed by another of its questions.",
            ("task", "verdict", "reason"),
            registry=self.registry,
        )
        self.decision_seconds = Histogram(
            "demur_decision_seconds", "Time of a decision.", ("task", "mode"), buckets=_SECONDS
        )
        self.engine_seconds = Histogram("demur_engine_seconds", "Of that, time in the engine.", buckets=_SECONDS)
        self.label_mass = Histogram("demur_label_mass", "Probability of all labels.", ("task",), buckets=_MASS)
        self.p_correct = Histogram(
            "demur_p_correct", "Calibrated probability that the decision is right.", ("task",), buckets=_CHANCE
        )
        self.bundle_info = Gauge(
            "demur_bundle_info", "Bundles in use.", ("task", "bundle", "model", "method"), registry=self.registry
        )
        self.certificate_valid = Gauge(
            "demur_certificate_valid", "Whether trust is certified now.", ("task",), registry=self.registry
        )
        self.certificate_expires = Gauge(
            "demur_certificate_expires_timestamp_seconds",
            "When the certificate expires.",
            ("task",),
            registry=self.registry,
        )
        #: How a certificate stands, by its key, where that is watched.
        self.standing: Callable[[str], Standing] = lambda _: Standing.VALID
        #: Told of every decision.
        self.observer: Callable[[Decision], None] = lambda _: None
        self.shadow = Counter(
            "demur_shadow_decisions",
            "Decisions that a shadow judged too: its verdict, and the one that was answered.",
            ("task", "verdict", "live"),
            registry=self.registry,
        )
        self._refresh: Callable[[], None] = lambda: None
        self.in_flight = Gauge("demur_in_flight", "Decisions waiting or running.", registry=self.registry)
        self.queue_size = Gauge(
            "demur_queue_size", "Decisions that may wait or run; more are refused.", registry=self.registry
        )
        self.shed = Counter("demur_shed", "Requests refused unread, or given up.", ("reason",), registry=self.registry)
        for reason in SHED:  # from 0 on, so that the first refusals are an increase too
            self.shed.labels(reason)

        #: What the page shows, besides the engine's own; more may be added.
        self.parts: list[Part] = [
            *(self.decision_seconds, self.engine_seconds, self.label_mass, self.p_correct),
            Exposition(self.registry),
        ]

    def watch_in_flight(self, count: Callable[[], int], limit: int) -> None:
        """Reads the gauge from `count` whenever the page is asked for; it can reach `limit`."""
        self.in_flight.set_function(count)
        self.queue_size.set(limit)

    def watch_bundles(self, model: str, bundles: Callable[[], Mapping[str, ServedBundle]]) -> None:
        """Shows the bundles that `bundles` gives whenever the page is asked for."""

        def refresh() -> None:
            self.bundle_info.clear()
            self.certificate_valid.clear()
            self.certificate_expires.clear()
            now = datetime.now(UTC)
            for task, served in bundles().items():
                calibrated = served.calibrated
                self.bundle_info.labels(task, calibrated.bundle.id, model, calibrated.method).set(1)
                guarantee = None if served.mismatches else calibrated.guarantee
                self.certificate_valid.labels(task).set(guarantee is not None and holds(guarantee, self.standing, now))
                if guarantee is not None and (end := first_end(guarantee)) is not None:
                    self.certificate_expires.labels(task).set(end.timestamp())

        self._refresh = refresh

    def count_shed(self, reason: str) -> None:
        """Counts a request that was refused or given up."""
        self.shed.labels(reason).inc()

    def observe(self, decision: Decision, seconds: float) -> None:
        """Records a decision that took so many seconds. Questions that are not registered count as `adhoc`."""
        request = decision.request
        task = request.task.name if request.task else ADHOC
        self.decisions.labels(task, decision.verdict, decision.reason).inc()
        self.decision_seconds.observe(seconds, task, request.spec.mode)
        self.engine_seconds.observe(decision.timings.engine_ms / 1e3)
        self.label_mass.observe(decision.label_mass, task)
        if decision.p_correct is not None:
            self.p_correct.observe(decision.p_correct, task)
        if decision.shadow is not None:
            self.shadow.labels(task, decision.shadow.verdict, decision.verdict).inc()
        self.observer(decision)

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        self._refresh()
        own = "".join(line for part in self.parts for line in part.lines())
        return own.encode() + b"".join(generate_latest(registry) for registry in self._engine)


class MeasuredDecider:
    """A decider that records what another decides."""

    def __init__(self, decider: Decider, metrics: Metrics) -> None:
        self._decider = decider
        self._metrics = metrics

    async def decide(self, request: DecideRequest) -> Decision:
        """Decides and records."""
        start = perf_counter()
        decision = await self._decider.decide(request)
        self._metrics.observe(decision, perf_counter() - start)
        return decision
