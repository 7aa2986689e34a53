"""Ends a request's work early: the caller hangs up, the deadline passes, or the engine fails."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Receive

from demur.server.errors import DeadlineExceeded, EngineUnavailable
from demur.server.lifecycle import Lifecycle


class HungUp(Exception):
    """The caller is gone; there is nobody to answer."""


class Interruption:
    """`async with` around the work of one request.

    The first cause cancels the work (so engine requests are aborted) and is raised in its place:
    `DeadlineExceeded` after `seconds`, `EngineUnavailable` when the engine fails, `HungUp` once `watch` was called
    and the caller disconnects. Any other cancellation passes through.
    """

    def __init__(self, lifecycle: Lifecycle, seconds: float, on_expire: Callable[[], None] = lambda: None) -> None:
        self._lifecycle = lifecycle
        self._seconds = seconds
        self._on_expire = on_expire
        self._cause: DeadlineExceeded | EngineUnavailable | HungUp | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        work = asyncio.current_task()
        if work is None:  # pragma: no cover
            raise RuntimeError("an interruption needs a task to cancel")
        self._work = work
        self._open = True
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        self._forget = self._lifecycle.on_fail(self._interrupt)
        return self

    def watch(self, receive: Receive) -> None:
        """Watches for the caller's disconnect. Call it when the body has been read: it takes over `receive`."""
        self._watcher = asyncio.create_task(self._await_disconnect(receive))

    def absorb(self) -> DeadlineExceeded | EngineUnavailable | None:
        """For a `CancelledError` just caught: the deadline or failure behind it, which the caller then answers for.

        None where it was anything else, which must be raised again.
        """
        cause = self._cause
        if isinstance(cause, HungUp) or cause is None or self._work.uncancel() > 0:
            return None
        self._open, self._cause = False, None
        return cause

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._timer.cancel()
        self._forget()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._cause is not None and self._work.uncancel() == 0 and kind is asyncio.CancelledError:
            raise self._cause from None

    def _interrupt(self, cause: DeadlineExceeded | EngineUnavailable | HungUp) -> None:
        if asyncio.current_task() is self._work:
            # A task that cancels itself is hit at its next await, which may lie beyond the work.
            asyncio.get_running_loop().call_soon(self._interrupt, cause)
        elif self._open and self._cause is None:
            self._cause = cause
            self._work.cancel()

    def _expire(self) -> None:
        self._on_expire()
        self._interrupt(DeadlineExceeded(f"no answer within {self._seconds:g} s; the work was stopped"))

    async def _await_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._interrupt(HungUp())
