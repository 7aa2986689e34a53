"""Watching an engine's processes: vLLM offers no callback, so whoever serves has to look.

An engine is *dead* when one of its processes is gone, and *hung* when one is stopped, or when work is pending and
nothing has come out of it for `hang_timeout` seconds.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from multiprocessing import resource_tracker
from typing import Any

import psutil

from demur.server.errors import EngineUnavailable

POLL_SECONDS = 0.5


class Heartbeat:
    """When the engine last showed life, and how much work waits for it."""

    def __init__(self) -> None:
        self.pending = 0
        self._last = time.monotonic()

    def beat(self) -> None:
        """The engine put something out."""
        self._last = time.monotonic()

    def begin(self) -> None:
        """A request goes in. A silence counts from here if nothing was pending."""
        if self.pending == 0:
            self._last = time.monotonic()
        self.pending += 1

    def end(self) -> None:
        """A request is over, however it ended."""
        self.pending -= 1

    def silence(self) -> float:
        """Seconds since the last sign of life while work is pending; 0 when idle."""
        return time.monotonic() - self._last if self.pending else 0.0


def children() -> list[psutil.Process]:
    """This process's living descendants that are part of an engine (not multiprocessing's resource tracker)."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            helper = any("resource_tracker" in word for word in process.cmdline())
        except psutil.Error:
            continue
        if not helper:
            found.append(process)
    return found


def fault(processes: Sequence[psutil.Process]) -> str | None:
    """What is wrong with the first process that is gone or stopped, or None."""
    for process in processes:
        try:
            status = process.status() if process.is_running() else psutil.STATUS_DEAD
        except psutil.Error:
            status = psutil.STATUS_DEAD
        if status in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE):
            return f"engine process {process.pid} died"
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return f"engine process {process.pid} is stopped"
    return None


async def watch(
    processes: Sequence[psutil.Process], heartbeat: Heartbeat, errored: Callable[[], bool], hang_timeout: float
) -> str:
    """Returns why the engine is no longer usable, once it is not."""
    silent, looked = 0.0, time.monotonic()
    while True:
        if errored():
            return "the engine reported a fatal error"
        if (reason := fault(processes)) is not None:
            return reason
        # Added up look by look: who looks late was frozen or busy, and the engine may have been frozen beside it.
        now = time.monotonic()
        silent = min(silent + min(now - looked, 2 * POLL_SECONDS), heartbeat.silence())
        looked = now
        if silent > hang_timeout:
            return f"no output for {silent:.0f} s with {heartbeat.pending} requests pending"
        await asyncio.sleep(POLL_SECONDS)


async def unless(failed: Coroutine[Any, Any, str], work: Coroutine[Any, Any, None]) -> None:
    """Does the work. Raises `EngineUnavailable` once `failed` returns why, whatever the work still waits for."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(failed)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise EngineUnavailable(tasks[1].result())
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def end_resource_tracker() -> None:
    """Waits until multiprocessing's helper has cleared away what killed engine processes left in shared memory.

    It would end by itself a moment after this process, and until then look like a child left behind.
    """
    stop = getattr(resource_tracker._resource_tracker, "_stop", None)  # noqa: SLF001  there is no public way
    if stop is not None:
        stop()


def kill(processes: Sequence[psutil.Process], seconds: float = 3.0) -> None:
    """Ends the processes at once, stopped ones too, and waits until they run no more (so many seconds at most)."""
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue
    deadline = time.monotonic() + seconds
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    """A zombie does not: whoever adopted it, as init does with a worker whose engine died, may leave it for long."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
