"""The live state of processes on one store: they agree, a restart knows what was known, and what is unknown says so."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from demur.server.loop.live import LiveLoop, Served
from demur.server.store.decisions import put
from demur.server.store.errors import StoreUnavailable
from demur.server.store.records import Draw
from demur.server.types import Standing

from .conftest import GUARANTEE, NOW, Desk, decision

SERVED = Served("route", "b" * 64, (GUARANTEE,))


class Clock:
    """A clock that tests set."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def process(store, served=SERVED, **options):
    loop = LiveLoop(store, clock=options.pop("clock", Clock(NOW.timestamp())), **options)
    loop.serve(served)
    return loop


def shown(loop):
    """All that metrics show of the store."""
    return {key: _numbers(status) for key, status in loop.view.guarantees.items()}, dict(loop.view.tasks)


def _numbers(status):
    return (
        *(status.state, status.audits, status.upper, status.estimate, status.recent),
        pytest.approx(status.log_evalue, abs=1e-9),
    )


async def test_what_is_not_known_yet_or_not_any_more_is_unknown(open_store):
    monotonic = Clock(100.0)
    store = open_store()
    loop = process(store, monotonic=monotonic)
    assert loop.standing("g") is Standing.UNKNOWN
    await loop.catch_up()
    assert loop.standing("g") is Standing.VALID
    assert loop.standing("other") is Standing.UNKNOWN
    monotonic.now += 9.9
    assert loop.standing("g") is Standing.VALID
    monotonic.now += 0.2
    assert loop.standing("g") is Standing.UNKNOWN
    await loop.catch_up()
    assert loop.standing("g") is Standing.VALID


async def test_a_store_that_does_not_answer_makes_everything_unknown_until_it_does(open_store, monkeypatch):
    store, monotonic = open_store(), Clock(0.0)
    loop = process(store, monotonic=monotonic)
    await loop.catch_up()

    async def down(_):
        raise StoreUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(store, "read", down)
        monotonic.now = 11.0
        with pytest.raises(StoreUnavailable):
            await loop.catch_up()
        assert loop.standing("g") is Standing.UNKNOWN
    await loop.catch_up()
    assert loop.standing("g") is Standing.VALID


async def test_errors_withdraw_in_every_process_and_one_of_them_tells(open_store):
    told = []
    one, other = (process(open_store(), on_change=told.append) for _ in range(2))
    await one.catch_up()
    await other.catch_up()
    desk = Desk(open_store())
    desk.label(desk.draw(20), "b")
    for loop in (one, other):
        await loop.catch_up()
        assert loop.standing("g") is Standing.WITHDRAWN
        assert loop.withdrawn("route")
    assert [(change.before, change.status.state) for change in told] == [("valid", "withdrawn")]
    # Corrections recompute the process and restore nothing, here and after a restart.
    desk.label([f"dec_{i:06}" for i in range(20)], "a")
    fresh = process(open_store(), on_change=told.append)
    for loop in (one, other, fresh):
        await loop.catch_up()
        assert loop.standing("g") is Standing.WITHDRAWN
        assert loop.view.guarantees["g"].estimate == 0.0
    assert shown(one) == shown(other) == shown(fresh)
    assert len(told) == 1


async def test_a_restart_shows_what_was_shown_and_what_the_table_says(open_store):
    clock = Clock(NOW.timestamp())
    desk = Desk(open_store())
    running = process(open_store(), clock=clock)
    rng = np.random.default_rng(0)
    ids = []
    for step in range(12):
        rates = (0.05, 0.01)[step % 2]
        p = float(rng.uniform(0.5, 1.0))
        ids += desk.draw(
            int(rng.integers(1, 20)),
            due=NOW + timedelta(days=int(rng.integers(1, 9))),
            p_correct=p,
            guarantee="g" if step % 3 else None,
            draw=decision(0).draw.__class__(0.001, rates, drawn=True),
        )
        for chosen in rng.choice(ids, 8):
            desk.label([str(chosen)], "ab"[int(rng.random() < 0.05)])
        clock.now += 86_400 * (1 if step != 6 else -2)  # once it steps back
        await running.catch_up()
        fresh = process(open_store(), clock=clock)
        await fresh.catch_up()
        assert shown(fresh) == shown(running)
    assert running.view.tasks["route"].calibration is not None
    assert running.view.guarantees["g"].audits < desk.drawn


async def test_labels_that_are_missing_starve_and_late_ones_feed(open_store):
    clock, told = Clock(NOW.timestamp()), []
    loop = process(open_store(), clock=clock, on_change=told.append)
    await loop.catch_up()
    desk = Desk(open_store())
    ids = desk.draw(10)
    clock.now += 8 * 86_400
    await loop.catch_up()
    assert loop.standing("g") is Standing.STARVED
    assert loop.view.tasks["route"].expired == 10
    desk.label(ids, "a")
    await loop.catch_up()
    assert loop.standing("g") is Standing.VALID
    clock.now += 90 * 86_400
    await loop.catch_up()
    assert [change.status.state for change in told] == ["starved", "valid", "expired"]


async def test_an_audit_that_is_erased_before_it_is_due_starves_nothing(open_store):
    clock = Clock(NOW.timestamp())
    running = process(open_store(), clock=clock)
    await running.catch_up()
    desk = Desk(open_store())
    ids = desk.draw(40)
    await running.catch_up()
    desk.label(ids[20:], "a")
    for late in (False, True):  # where labels come after the erasure was seen, and before
        if late:
            ids = desk.draw(20, due=NOW + timedelta(days=20))
            await running.catch_up()
        desk.erase(ids[:20], datetime.fromtimestamp(clock.now, UTC))
        clock.now += 8 * 86_400
        await running.catch_up()
        fresh = process(open_store(), clock=clock)
        await fresh.catch_up()
        assert running.standing("g") is Standing.VALID
        assert shown(running)[0] == shown(fresh)[0]
    assert running.view.tasks["route"].expired == 0
    clock.now += 8 * 86_400
    await running.catch_up()
    assert shown(running) == shown(fresh)


async def test_erasing_what_is_missing_ends_no_starvation_and_asks_nobody_for_it(open_store):
    clock, monotonic = Clock(NOW.timestamp()), Clock(0.0)
    running = process(open_store(), clock=clock, monotonic=monotonic)
    await running.catch_up()
    desk = Desk(open_store())
    ids = desk.draw(10)
    clock.now += 8 * 86_400
    await running.catch_up()
    assert running.view.tasks["route"].expired == 10
    desk.erase(ids, datetime.fromtimestamp(clock.now, UTC))
    monotonic.now += 61.0
    await running.catch_up()
    fresh = process(open_store(), clock=clock)
    await fresh.catch_up()
    for loop in (running, fresh):
        assert loop.standing("g") is Standing.STARVED
    assert running.view.tasks["route"].expired == 0


async def test_what_happens_while_a_process_starts_is_known_to_it(open_store, monkeypatch):
    store, desk = open_store(), Desk(open_store())
    ids = desk.draw(25)
    loop = process(store)
    read = LiveLoop._table

    def then_labelled(*asked):
        found = read(*asked)
        desk.label(ids, "b")
        return found

    monkeypatch.setattr(LiveLoop, "_table", then_labelled)
    await loop.catch_up()
    assert loop.standing("g") is Standing.WITHDRAWN


async def test_a_reviewer_who_labels_only_what_looks_wrong_moves_nothing(open_store):
    desk = Desk(open_store())
    loop = process(open_store())
    desk.label(desk.draw(60), "a")
    await loop.catch_up()
    before = shown(loop)
    chosen = [decision(10_000 + i, draw=decision(0).draw.__class__(0.9, 0.05, drawn=False)) for i in range(200)]
    from demur.server.store.decisions import put

    desk.store.write_now(lambda connection: put(connection, chosen))
    desk.label([one.id for one in chosen], "b")
    await loop.catch_up()
    fresh = process(open_store())
    await fresh.catch_up()
    assert shown(loop) == before == shown(fresh)
    assert loop.standing("g") is Standing.VALID


def rewind(store, *, audits, labels):
    """As a copy from when there were so many audits and labels, restored under running processes."""
    said = (
        "DELETE FROM labels WHERE seq > :labels",
        "UPDATE decisions SET label = NULL WHERE label > :labels",
        "DELETE FROM audits WHERE seq > :audits",
        "DELETE FROM decisions WHERE seq NOT IN (SELECT decision FROM audits)",
        "UPDATE guarantees SET state = 'valid', withdrawn_at = NULL, ended_audit_seq = NULL",
        "UPDATE counters SET audits = :audits, labels = :labels",
    )
    values = {"audits": audits, "labels": labels}
    store.write_now(lambda connection: [connection.execute(sa.text(one), values) for one in said])


# 50: the database failed over to a copy a moment behind, and others wrote past what was read before this one looked.
@pytest.mark.parametrize("written", [20, 50])
async def test_after_a_store_was_restored_from_a_copy_labels_count_as_before(open_store, written):
    desk, running = Desk(open_store()), process(open_store())
    desk.label(desk.draw(60), "a")
    await running.catch_up()
    rewind(desk.store, audits=20, labels=10)
    desk.label(desk.draw(written), "b")
    fresh = process(open_store())
    for loop in (running, fresh):
        await loop.catch_up()
        assert loop.standing("g") is Standing.WITHDRAWN
        assert loop.view.guarantees["g"].audits == 20 + written
    assert shown(running) == shown(fresh)


async def test_what_was_withdrawn_stays_so_though_the_store_was_restored_from_before(open_store):
    desk, running = Desk(open_store()), process(open_store())
    desk.label(desk.draw(20), "b")
    await running.catch_up()
    rewind(desk.store, audits=0, labels=0)
    for loop in (running, process(open_store())):
        await loop.catch_up()
        assert loop.standing("g") is Standing.WITHDRAWN


async def test_a_label_that_goes_with_its_decision_leaves_all_others_known(open_store, caplog):
    desk, loop = Desk(open_store()), process(open_store())
    desk.label(desk.draw(20), "a")
    desk.store.write_now(lambda connection: put(connection, [decision(99, draw=Draw(0.9, 0.05, drawn=False))]))
    desk.label(["dec_000099"], "a")
    await loop.catch_up()
    desk.erase(["dec_000099"], NOW)
    desk.label(desk.draw(20), "a")
    await loop.catch_up()
    assert loop.view.guarantees["g"].audits == 40
    assert not caplog.records
