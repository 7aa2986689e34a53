"""What the server is able to do now: starting, ready, draining or failed."""

from collections.abc import Callable
from enum import StrEnum

from demur.server.errors import EngineUnavailable, Unavailable

#: Retry-After of a server whose engine failed: it ends, and whatever supervises it starts another.
ENGINE_RETRY_S = 5


class Phase(StrEnum):
    """Phases in their order; `failed` may follow any."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """Phase of the server. Owned by one event loop; every method is synchronous and idempotent."""

    def __init__(self, retry_after_s: float = 1) -> None:
        self.phase = Phase.STARTING
        self.detail = "the engine is starting"
        self._retry_after_s = retry_after_s
        self._on_fail: set[Callable[[EngineUnavailable], None]] = set()

    def ready(self) -> None:
        """A read has been answered and the tasks' prefixes are warm."""
        if self.phase is Phase.STARTING:
            self.phase, self.detail = Phase.READY, "ready"

    def drain(self) -> None:
        """New work is refused; what is in flight goes on."""
        if self.phase is not Phase.FAILED:
            self.phase, self.detail = Phase.DRAINING, "the server is shutting down"

    def fail(self, detail: str) -> None:
        """The engine is dead or hung: callers that wait get a 503 at once, and so does new work."""
        if self.phase is Phase.FAILED:
            return
        self.phase, self.detail = Phase.FAILED, detail
        for call in tuple(self._on_fail):
            call(EngineUnavailable(detail, retry_after=ENGINE_RETRY_S))

    def check(self) -> None:
        """Raises `Unavailable` (`EngineUnavailable` after a failure) unless decisions can be taken."""
        if self.phase is Phase.READY:
            return
        if self.phase is Phase.FAILED:
            raise EngineUnavailable(self.detail, retry_after=ENGINE_RETRY_S)
        raise Unavailable(f"{self.detail}; try again later", retry_after=self._retry_after_s)

    def on_fail(self, call: Callable[[EngineUnavailable], None]) -> Callable[[], None]:
        """Calls `call` if the engine fails. Returns what takes that back."""
        self._on_fail.add(call)
        return lambda: self._on_fail.discard(call)
