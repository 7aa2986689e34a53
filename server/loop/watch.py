"""What watches a running server: certificates, live calibration, drift, versions, and who is told of changes."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import numpy as np
from sqlalchemy import Connection

from demur.calibration import CalibrationError
from demur.decision.task import PolicySpec, Task
from demur.server.bundles import ServedBundle
from demur.server.calibrated import Calibrated
from demur.server.closing import finished
from demur.server.errors import DemurError
from demur.server.loop.gauges import LoopGauges
from demur.server.loop.live import LiveLoop, LiveView, StateChange
from demur.server.loop.loop import Loop
from demur.server.loop.renewal import Renewal
from demur.server.loop.shelf import Shelf, Swap, watched
from demur.server.loop.traffic import Reference, Seen, Traffic, TrafficWindow, drift_monitor
from demur.server.loop.webhook import Webhook
from demur.server.metrics import Metrics
from demur.server.registry import Registry, TaskRegistry
from demur.server.settings import Settings
from demur.server.store.attempts import attempts_made, last_attempt
from demur.server.store.decisions import recent
from demur.server.store.errors import StoreUnavailable, Superseded
from demur.server.store.records import Attempt
from demur.server.store.store import Store
from demur.server.types import Decision, Standing

#: Of a window: so many new decisions are worth another look while more come in.
_NEW = 0.1
#: Between two looks at what other processes made active, and at the traffic.
_TEND_S = 1.5
#: Between two looks for certificates that are due.
_RENEWAL_EVERY_S = 600.0

_log = logging.getLogger("demur.loop")


class ServesBundles(Protocol):
    """What swaps bundles between two requests: the decide pipeline."""

    def serve_bundle(self, task: Task, bundle: Calibrated) -> ServedBundle:
        """Serves a task with a bundle from now on."""
        ...


@dataclass(slots=True)
class _Traffic:
    bundle: str
    window: TrafficWindow
    new: int = 0
    seen: int = field(default=-1)


class Watch:
    """Owned by one event loop; `start` and `aclose` it there. `swap` serves a task with another bundle."""

    def __init__(
        self,
        store: Store,
        registry: TaskRegistry,
        gauges: LoopGauges,
        swap: Swap,
        *,
        max_missing: float = 0.1,
        webhook: Webhook | None = None,
        renewal_days: float = 0.0,
    ) -> None:
        self._store = store
        self._registry = registry
        self.gauges = gauges
        self._webhook = webhook
        self._renewal_days = renewal_days
        #: The policy in force for a task.
        self.policy_of: Callable[[Task], PolicySpec] = lambda task: task.policy
        self.live = LiveLoop(store, max_missing=max_missing, on_change=self._changed, on_view=self._viewed)
        self.shelf = Shelf(store, swap, self.labelled)
        self.renewal = Renewal(store, self.shelf, count=gauges.count_renewal)
        self._traffic: dict[str, _Traffic] = {}
        self._work: list[asyncio.Task[None]] = []
        # While the engine starts nothing is served, and no certificate has to be known.
        gauges.state_age.set_function(lambda: self.live.unread_s if self.live.watches else float("nan"))

    @classmethod
    def over(
        cls,
        loop: Loop,
        registry: Registry,
        metrics: Metrics,
        settings: Settings,
        pipeline: Callable[[], ServesBundles | None],
    ) -> "Watch":
        """The watch of a server, joined to its loop and its metrics. `pipeline` gives None until the engine runs."""

        def swap(name: str, calibrated: Calibrated) -> None:
            running, task = pipeline(), registry.current.get(name)
            if running is not None and task is not None:
                served = running.serve_bundle(task, calibrated)
                registry.bundles = {**registry.bundles, name: served}
                if not served.mismatches:
                    watch.serves(name, calibrated)

        secret = settings.webhook_secret
        hook = None
        if settings.webhook_url is not None and secret is not None:
            hook = Webhook(settings.webhook_url, secret.get_secret_value())
        watch = cls(
            loop.store,
            registry,
            LoopGauges(metrics.registry),
            swap,
            max_missing=settings.max_missing_labels,
            webhook=hook,
            renewal_days=settings.renewal_days,
        )
        metrics.parts.append(watch.gauges.reliability)
        loop.labelled, loop.auditor.withdrawn = watch.labelled, watch.live.withdrawn
        metrics.standing, metrics.observer = watch.standing, watch.observe
        return watch

    def standing(self, key: str) -> Standing:
        """How a certificate stands."""
        return self.live.standing(key)

    def start(self) -> None:
        """Begins to follow the store."""
        self._work += [asyncio.create_task(self.live.run()), asyncio.create_task(self._tend())]
        if self._renewal_days:
            self._work.append(asyncio.create_task(self._renew()))
        if self._webhook is not None:
            self._work.append(asyncio.create_task(self._webhook.run()))

    async def aclose(self) -> None:
        """Stops; events that were not sent yet are not."""
        for task in self._work:
            task.cancel()
        await finished(*self._work)

    def serves(self, task: str, calibrated: Calibrated) -> None:
        """A task is served with a bundle that fits from now on."""
        served, known = watched(task, calibrated), self._registry.current.get(task)
        if served.guarantees and known is not None and not known.audit.trust:
            _log.warning(
                "the certificate of a task is not watched, since no trusted decision is audited: nothing will tell "
                "when its promise is broken; set the task's audit.trust above 0",
                extra={"fields": {"task": task, "bundle": served.bundle}},
            )
        self.live.serve(served)

    async def begin(self, served: Mapping[str, ServedBundle]) -> None:
        """Watches what tasks are served with now, and looks at the store once."""
        for name, one in served.items():
            if not one.mismatches:
                self.serves(name, one.calibrated)
        await self.labelled()

    async def labelled(self) -> None:
        """Labels were stored: what follows from them holds when this returns, if the store still answers."""
        try:
            await self.live.catch_up()
        except StoreUnavailable:
            _log.warning("labels are stored, but what follows from them is not known yet")
        except Exception:
            _log.exception("cannot follow the store")

    def observe(self, decision: Decision) -> None:
        """Takes a decision for what is watched without labels."""
        task = decision.request.task
        if task is None or (traffic := self._traffic.get(task.name)) is None or decision.calibration is None:
            return
        if decision.calibration.bundle == traffic.bundle and decision.score is not None:
            traffic.window.add(Seen(decision.score, decision.index, decision.label_mass, decision.p_correct))
            traffic.new += 1

    async def _viewed(self, view: LiveView) -> None:
        keys = {
            name: tuple(record.key for record in watched(name, served.calibrated).guarantees)
            for name, served in self._registry.bundles.items()
            if not served.mismatches
        }
        self.gauges.show(view, keys)

    async def _tend(self) -> None:
        """Beside the live state, which must not wait for it: versions of other processes, and traffic."""
        while True:
            try:
                await self.tend()
            except StoreUnavailable:
                _log.debug("the store cannot be read")
            except Exception:
                _log.exception("cannot follow versions and traffic")
            await asyncio.sleep(_TEND_S)

    async def tend(self) -> None:
        """Serves what other processes made active, and shows the traffic. Raises StoreUnavailable."""
        await self.shelf.follow(self._registry.bundles, self._registry.current)
        fitting = {name: one.calibrated for name, one in self._registry.bundles.items() if not one.mismatches}
        for name in self._traffic.keys() - fitting.keys():
            del self._traffic[name]
            self.gauges.traffic(name, Traffic(None, None, {}))
        for name, calibrated in fitting.items():
            await self._watch_traffic(name, calibrated)
        for name, traffic in self._traffic.items():
            quiet = traffic.new == traffic.seen
            if traffic.new and (quiet or traffic.new >= _NEW * traffic.window.size):
                self.gauges.traffic(name, await asyncio.to_thread(traffic.window.read))
                traffic.new = 0
            traffic.seen = traffic.new

    async def _renew(self) -> None:
        """Renews what is due, now and then. An attempt that fails is counted, and the next one comes as long after."""
        while True:
            try:
                await self.renew_due(datetime.now(UTC))
            except StoreUnavailable:
                _log.warning("certificates could not be renewed: the store does not answer")
            except Exception:
                _log.exception("certificates could not be renewed")
            await asyncio.sleep(_RENEWAL_EVERY_S)

    async def renew_due(self, now: datetime) -> None:
        """Certifies anew what was issued or attempted `renewal_days` ago. Raises StoreUnavailable."""
        for name, served in tuple(self._registry.bundles.items()):
            task, guarantee = self._registry.current.get(name), served.calibrated.guarantee
            if task is None or guarantee is None or served.mismatches:
                continue
            made, last = await self._store.read(partial(_attempts, name))
            since = guarantee.issued_at if last is None else max(guarantee.issued_at, last.at)
            if now - since < timedelta(days=self._renewal_days):
                continue
            try:
                renewed = await self.renewal.recertify(
                    task, served, self.policy_of(task), by="schedule", only_after=made
                )
            except Superseded:  # of several processes that see what is due, one pays for it
                _log.info("a renewal was due, and is somebody else's", extra={"fields": {"task": name}})
                continue
            except (DemurError, CalibrationError) as error:  # the other tasks are renewed all the same
                _log.warning("a certificate could not be renewed: %s", error, extra={"fields": {"task": name}})
                continue
            _log.info("a renewal was due", extra={"fields": {"task": name, "outcome": renewed.outcome}})

    async def _watch_traffic(self, name: str, calibrated: Calibrated) -> None:
        """A window of a new bundle, filled with what the store has of it."""
        bundle = calibrated.bundle.id
        if name in self._traffic and self._traffic[name].bundle == bundle:
            return
        task: Task | None = self._registry.current.get(name)
        if task is None:
            return
        reference = reference_of(calibrated, task)
        window = TrafficWindow(None if reference is None else await asyncio.to_thread(drift_monitor, reference))
        rows = await self._store.read(lambda connection: recent(connection, self._store.options, name, window.size))
        for row in rows:
            if row.bundle == bundle and row.score is not None:
                window.add(Seen(row.score, row.option, row.label_mass, row.p_correct))
        self._traffic[name] = _Traffic(bundle, window, new=1)

    def _changed(self, change: StateChange) -> None:
        record, state = change.status.record, change.status.state
        said = {
            "task": record.task,
            "slice": record.slice,
            "bundle": record.bundle,
            "guarantee": record.key,
            "state": state,
            "before": change.before,
            "at": _iso(change.at),
            "alpha": record.alpha,
            "delta": record.delta,
            "audits": change.status.audits,
            "trusted_risk": change.status.estimate,
        }
        level = logging.INFO if state == "valid" else logging.WARNING
        _log.log(level, "a certificate is %s", state, extra={"fields": said})
        if self._webhook is not None:
            self._webhook.tell(f"certificate.{state}", said)


def reference_of(calibrated: Calibrated, task: Task) -> Reference | None:
    """The rows that a bundle was made from, as far as they are kept."""
    match calibrated.bundle.document("reference.json"):
        case {"scores": list() as scores, "label_mass": list() as mass, "options": dict() as options}:
            counts = [options.get(name, 0) for name in task.spec.question.names]
            return Reference(np.array(scores, float), np.array(mass, float), np.array(counts, dtype=np.int64))
        case _:
            return None


def _attempts(task: str, connection: Connection) -> tuple[int, Attempt | None]:
    return attempts_made(connection, task), last_attempt(connection, task)


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
