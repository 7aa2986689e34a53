"""What the wires work with: the decider, the tasks, and the limits of a request."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request

from demur.decision.bundle import Bundle
from demur.decision.labelled import LabelledData
from demur.decision.task import ReadoutKind, Task
from demur.server.admission import Admission
from demur.server.auth import Caller
from demur.server.body import read_json
from demur.server.calibrate import Calibration, Plan
from demur.server.errors import BadRequest, Conflict
from demur.server.interruption import Interruption
from demur.server.lifecycle import Lifecycle
from demur.server.live_policies import LivePolicies
from demur.server.loop.loop import Loop
from demur.server.loop.watch import Watch
from demur.server.metrics import Metrics
from demur.server.readings import Reader
from demur.server.registry import TaskRegistry
from demur.server.settings import Settings
from demur.server.shadow_policies import ShadowPolicies
from demur.server.types import Decider

#: Milliseconds that the caller will wait, a whole number from 1; it can only shorten the server's own deadline.
DEADLINE_HEADER = "X-Demur-Deadline-Ms"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model as its callers see it. `release_date` is YYYY-MM-DD, `created` seconds since 1970."""

    name: str
    description: str
    release_date: str
    created: int = 0
    aliases: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it answers to, its own first."""
        return tuple(dict.fromkeys((self.name, "jev-latest", *self.aliases)))


class RowReader(Reader, Protocol):
    """Reads rows, and knows the readout that is used."""

    readout: ReadoutKind


class Made(Protocol):
    """A calibration, and the bundle that it became."""

    @property
    def calibration(self) -> Calibration:
        """What was fitted and certified."""
        ...

    @property
    def bundle(self) -> Bundle:
        """As it was written, and is served."""
        ...


class Desk(Protocol):
    """Reads labelled rows beside the traffic, and makes bundles of them."""

    def reader(self, task: Task) -> RowReader:
        """Reads rows as the task does, without its bundle. Raises Unavailable."""
        ...

    async def calibrate(
        self,
        task: Task,
        data: LabelledData,
        plan: Plan,
        *,
        unlabelled: LabelledData | None = None,
        by: str | None = None,
    ) -> Made:
        """Makes a bundle of labelled rows, and others without labels, and swaps it in; `by` is the id of a key.

        Raises DataFileError, BundleError, CalibrationError, DemurError.
        """
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that an endpoint needs."""

    decider: Decider
    tasks: TaskRegistry
    settings: Settings
    lifecycle: Lifecycle
    admission: Admission
    metrics: Metrics
    model: ServedModel
    policies: LivePolicies
    shadows: ShadowPolicies
    desk: Desk | None = None
    loop: Loop | None = None
    watch: Watch | None = None

    def require_loop(self) -> Loop:
        """The loop. Raises `Conflict` where decisions are not kept."""
        if self.loop is None:
            raise Conflict("this server keeps no decisions; start it with --state-dir DIR, or set DEMUR_STORE_URL")
        return self.loop

    def interruption(self, request: Request) -> Interruption:
        """Around the work of a request: its deadline begins now. Raises `BadRequest` for a malformed header."""
        seconds = self.settings.deadline_s
        header = request.headers.get(DEADLINE_HEADER)
        if header is not None:
            if not (header.isascii() and header.isdecimal() and len(header) <= 12 and int(header) > 0):
                raise BadRequest(f"{DEADLINE_HEADER} must be a whole number of milliseconds, 1 or more")
            seconds = min(seconds, int(header) / 1e3)
        return Interruption(self.lifecycle, seconds, on_expire=lambda: self.metrics.count_shed("deadline"))

    async def read(self, request: Request) -> Any:
        """The JSON value in a request's body. Raises what `read_json` does."""
        return await read_json(request, max_bytes=self.settings.max_body_bytes, max_nesting=self.settings.max_nesting)

    def cache_salt(self, request: Request) -> str | None:
        """Keeps the prefix caches of different keys apart, where that is wanted."""
        caller: Caller = request.state.caller
        return caller.key_id if self.settings.cache_salt_per_key else None
