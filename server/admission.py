"""The bounded queue: how many decisions may wait or run at once."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from demur.server.errors import Overloaded, Unavailable
from demur.server.lifecycle import Lifecycle


class Admission:
    """Counts decisions in flight and refuses work beyond `size`, or while the server is not ready.

    `requests` are those at work, with decisions or without. `on_shed` is told the reason of every refusal.
    """

    def __init__(
        self, lifecycle: Lifecycle, size: int, retry_after_s: float, on_shed: Callable[[str], None] = lambda _: None
    ) -> None:
        self.in_flight = 0
        self.requests = 0
        self._lifecycle = lifecycle
        self._size = size
        self._retry_after_s = retry_after_s
        self._on_shed = on_shed
        self._idle = asyncio.Event()
        self._idle.set()

    def check_ready(self) -> None:
        """Raises `Unavailable` unless the server is ready."""
        try:
            self._lifecycle.check()
        except Unavailable:
            self._on_shed(self._lifecycle.phase)
            raise

    def check(self, n: int = 1) -> None:
        """Raises `Unavailable`, or `Overloaded` unless n places are free; cheap, so it comes before a body is read."""
        self.check_ready()
        if self.in_flight + n > self._size:
            self._on_shed("queue_full")
            raise Overloaded(
                f"{self.in_flight} of {self._size} places are taken, too many for this request; try again later",
                retry_after=self._retry_after_s,
            )

    @contextmanager
    def places(self, n: int) -> Iterator[None]:
        """Holds n places, or none. Raises as `check`."""
        self.check(n)
        with self.work():
            self.in_flight += n
            try:
                yield
            finally:
                self.in_flight -= n

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around the work of a request that takes no place; `idle` waits for it all the same."""
        self.requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self._idle.set()

    async def idle(self) -> None:
        """Returns once no request is at work."""
        await self._idle.wait()
