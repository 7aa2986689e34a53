"""What the store says on the metrics page. Read from memory: a scrape asks no database."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from demur.server.loop.loop import Loop

#: Sources are the callers' words, so only so many are told apart.
_SOURCES = 20


class StoreMetrics(Collector):
    """Registers itself."""

    def __init__(self, loop: Loop, registry: CollectorRegistry) -> None:
        self._loop = loop
        self._sources: set[str] = set()
        self._feedback = Counter(
            "demur_feedback",
            "Labels stored, by this process; evidence: of audits.",
            ("task", "source", "evidence"),
            registry=registry,
        )
        loop.count_feedback = self._count_feedback
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        loop = self._loop
        yield _gauge("demur_store_up", "Whether the store took the last write in time.", loop.store.up)
        yield _gauge("demur_store_buffered", "Decisions that wait to be written.", loop.log.buffered)
        yield _gauge("demur_store_lag_seconds", "Age of the oldest of them.", loop.log.lag_s)
        yield _gauge(
            "demur_unaudited_decisions", "Decisions taken since audits cannot be kept.", loop.auditor.unaudited
        )
        differ = GaugeMetricFamily(
            "demur_label_disagreement", "Share of audits with two labels on which they differ.", labels=("task",)
        )
        for task, (double, disagreed) in loop.disagreement.items():
            differ.add_metric((task,), disagreed / double)
        yield differ
        lost = CounterMetricFamily("demur_store_lost", "Decisions answered and never stored.", labels=("reason",))
        for reason in ("full", "refused", "closed"):
            lost.add_metric((reason,), loop.log.lost[reason])
        yield lost

    def _count_feedback(self, task: str, source: str | None, evidence: bool) -> None:
        named = source or ""
        if named not in self._sources and len(self._sources) >= _SOURCES:
            named = "other"
        self._sources.add(named)
        self._feedback.labels(task, named, str(evidence).lower()).inc()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
