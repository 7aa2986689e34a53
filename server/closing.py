"""Closing in order: nothing that failed, before or while it closes, keeps the rest from being closed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

_log = logging.getLogger("demur.serve")


async def finished(*tasks: asyncio.Task[None]) -> None:
    """Waits for tasks that were told to end; a failure of one is logged."""
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.error("work in the background had failed", exc_info=outcome)


async def closed(*steps: Callable[[], Awaitable[None]]) -> None:
    """Takes the steps in their order, each of them also after one that failed, which is logged."""
    for step in steps:
        try:
            await step()
        except Exception:
            _log.exception("a part of the server could not be closed in order")
