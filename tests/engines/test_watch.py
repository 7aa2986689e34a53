"""When an engine counts as hung, by a clock that the test turns."""

from types import SimpleNamespace

import pytest

from demur.server.engines import watch


class Alive(Exception):
    """The watch found nothing until the test's end."""


async def watched(monkeypatch: pytest.MonkeyPatch, steps: list[float], beats: tuple[int, ...] = ()) -> str:
    """What the watch says of a pending request: looks lie so many seconds apart; `beats` are the looks after output."""
    now, taken = 100.0, 0

    async def sleep(_: float) -> None:
        nonlocal now, taken
        if taken == len(steps):
            raise Alive
        now, taken = now + steps[taken], taken + 1
        if taken in beats:
            heartbeat.beat()

    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(watch, "asyncio", SimpleNamespace(sleep=sleep))
    heartbeat = watch.Heartbeat()
    heartbeat.begin()
    return await watch.watch([], heartbeat, lambda: False, 2.0)


async def test_silence_with_work_pending_is_a_hang(monkeypatch):
    assert await watched(monkeypatch, [0.5] * 6) == "no output for 2 s with 1 requests pending"
    with pytest.raises(Alive):
        await watched(monkeypatch, [0.5] * 12, beats=(3, 6, 9, 12))


async def test_a_freeze_of_server_and_engine_together_is_no_hang(monkeypatch):
    """As of `docker pause`, or of a machine that sleeps: the engine goes on where it was, and needs its time."""
    with pytest.raises(Alive):
        await watched(monkeypatch, [0.5, 3600.0, 0.5, 0.5, 0.5], beats=(4,))
    assert await watched(monkeypatch, [0.5, 3600.0, 0.5, 0.5, 0.5]) == "no output for 2 s with 1 requests pending"
