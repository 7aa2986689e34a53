"""How long decisions go on being trusted while drawn ones cannot be kept."""

from dataclasses import replace
from datetime import timedelta

import pytest

from demur.decision.task import AuditSpec
from demur.server.loop.audits import MAX_UNAUDITED_S, Auditor
from demur.server.store.errors import StoreUnavailable
from tests.server.bundled import TASK

from .conftest import decision

ALL = replace(TASK, audit=AuditSpec(1.0, 1.0, 1.0))


class FlakyStore:
    """A store whose writes end as they are told to; `up` is what its writer believes."""

    up = True
    error: Exception | None = None

    def u(self, *_):
        return 0.0

    async def write(self, job):
        if self.error is not None:
            raise self.error


@pytest.fixture
def auditor():
    store, now = FlakyStore(), [0.0]
    one = Auditor(store, due_days=7, max_unaudited=1_000, clock=lambda: now[0])
    return one, store, now


async def test_trust_ends_after_so_many_decisions_or_so_long_and_returns_with_a_write(auditor):
    one, store, now = auditor
    store.up = False
    assert [one.count() for _ in range(1_001)] == [False] * 1_000 + [True]
    store.up = True
    assert one.count(), "nothing was stored since"
    one.wrote()
    assert not one.count()
    store.up, now[0] = False, 50.0
    assert not one.count()
    now[0] += MAX_UNAUDITED_S
    assert not one.count()
    now[0] += timedelta(seconds=1).total_seconds()
    assert one.count()


async def test_an_outage_that_comes_and_goes_is_one_outage(auditor):
    one, store, _ = auditor
    store.error = StoreUnavailable("full")
    assert not await one.keep(decision(1), ALL)
    for _ in range(1_000):
        store.up = not store.up  # small writes succeed now and then
        assert not one.count()
    assert one.count()
    store.error = None
    assert await one.keep(decision(2), ALL)
    assert not one.count()


async def test_where_audits_alone_are_refused_other_writes_end_nothing(auditor):
    one, store, _ = auditor
    store.error = ValueError("refused")
    assert not await one.keep(decision(1), ALL)
    for _ in range(1_000):
        one.wrote()
        assert not one.count()
    assert one.count()
    store.error = None
    assert await one.keep(decision(2), ALL)
    assert not one.count()
