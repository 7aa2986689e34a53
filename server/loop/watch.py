"""What watches a running server: certificates, live calibration, drift, versions, and who is told of changes."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from demur.decision.task import Task
from demur.server.calibrated import Calibrated
from demur.server.loop.gauges import LoopGauges
from demur.server.loop.live import LiveLoop, LiveView, StateChange
from demur.server.loop.renewal import Renewal
from demur.server.loop.shelf import Shelf, Swap, watched
from demur.server.loop.traffic import Reference, Seen, TrafficWindow, drift_monitor
from demur.server.loop.webhook import Webhook
from demur.server.registry import TaskRegistry
from demur.server.store.decisions import recent
from demur.server.store.errors import StoreUnavailable
from demur.server.store.store import Store
from demur.server.types import Decision, Standing

#: Of a window: so many new decisions are worth another look while more come in.
_NEW = 0.1

_log = logging.getLogger("demur.loop")


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
    ) -> None:
        self._store = store
        self._registry = registry
        self.gauges = gauges
        self._webhook = webhook
        self.live = LiveLoop(store, max_missing=max_missing, on_change=self._changed, on_view=self._viewed)
        self.shelf = Shelf(store, swap)
        self.renewal = Renewal(store, self.shelf, count=gauges.count_renewal)
        self._traffic: dict[str, _Traffic] = {}
        self._work: list[asyncio.Task[None]] = []
        gauges.state_age.set_function(lambda: self.live.age)

    def standing(self, key: str) -> Standing:
        """How a certificate stands."""
        return self.live.standing(key)

    def start(self) -> None:
        """Begins to follow the store."""
        self._work.append(asyncio.create_task(self.live.run()))
        if self._webhook is not None:
            self._work.append(asyncio.create_task(self._webhook.run()))

    async def aclose(self) -> None:
        """Stops; events that were not sent yet are not."""
        for task in self._work:
            task.cancel()
        for task in self._work:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def serves(self, task: str, calibrated: Calibrated) -> None:
        """A task is served with a bundle that fits from now on."""
        self.live.serve(watched(task, calibrated))

    async def labelled(self) -> None:
        """Labels were stored: what follows from them holds when this returns, if the store still answers."""
        try:
            await self.live.catch_up()
        except StoreUnavailable:
            _log.warning("labels are stored, but what follows from them is not known yet")

    def observe(self, decision: Decision) -> None:
        """Takes a decision for what is watched without labels."""
        task = decision.request.task
        if task is None or (traffic := self._traffic.get(task.name)) is None or decision.calibration is None:
            return
        if decision.calibration.bundle == traffic.bundle and decision.score is not None:
            traffic.window.add(Seen(decision.score, decision.index, decision.label_mass, decision.p_correct))
            traffic.new += 1

    async def _viewed(self, view: LiveView) -> None:
        await self.shelf.follow(self._registry.bundles, self._registry.current)
        keys = {}
        for name, served in self._registry.bundles.items():
            if not served.mismatches:
                keys[name] = tuple(record.key for record in watched(name, served.calibrated).guarantees)
                await self._watch_traffic(name, served.calibrated)
        self.gauges.show(view, keys)
        for name, traffic in self._traffic.items():
            quiet = traffic.new == traffic.seen
            if traffic.new and (quiet or traffic.new >= _NEW * traffic.window.size):
                self.gauges.traffic(name, await asyncio.to_thread(traffic.window.read))
                traffic.new = 0
            traffic.seen = traffic.new

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


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
