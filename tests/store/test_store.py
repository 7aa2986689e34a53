"""The store, in SQLite and in PostgreSQL: opened, away and back, closed."""

import asyncio
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from demur.server.store import decisions, schema, upkeep
from demur.server.store.database import store_url
from demur.server.store.errors import StoreError, StoreUnavailable
from demur.server.store.records import Draw
from demur.server.store.store import Store
from tests.process.server import wait_for

from .making import draw, find, opened, put, record


def test_migrations_make_the_schema_and_run_once_however_many_start(database):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(opened, [database] * 4))
    assert len({one.u("dec_1") for one in stores}) == 1  # one secret
    difference = stores[0].read_now(
        lambda connection: compare_metadata(MigrationContext.configure(connection), schema.metadata)
    )
    assert difference == []
    for one in stores:
        one.close()


def test_a_store_of_a_later_version_is_refused(database):
    one = opened(database)
    one.write_now(lambda connection: connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    one.close()
    with pytest.raises(StoreError, match="later"):
        opened(database)


async def test_a_cancellation_that_comes_together_with_the_result_is_not_lost(store):
    async def follow(call):
        while True:
            await call(lambda _: None)

    for call in (store.read, store.write):
        for turns in range(4):
            follower = asyncio.create_task(follow(call))
            await asyncio.sleep(0.02)
            time.sleep(0.02)  # noqa: ASYNC251  meanwhile the result comes, and waits for the event loop
            for _ in range(turns):
                await asyncio.sleep(0)
            follower.cancel()
            done, _ = await asyncio.wait([follower], timeout=2)
            assert done


async def test_a_job_that_fails_takes_no_other_along(store):
    def wrong(connection):
        connection.execute(sa.text("INSERT INTO counters (id, audits, labels) VALUES (1, 0, 0)"))

    jobs = [lambda connection, i=i: decisions.put(connection, [record(f"dec_{i}")]) for i in range(20)]
    jobs.insert(10, wrong)
    done = await asyncio.gather(*(store.write(job) for job in jobs), return_exceptions=True)
    assert [type(one) for one in done if one is not None] == [sa.exc.IntegrityError]
    assert store.read_now(upkeep.totals).decisions == 20
    assert store.up


async def test_a_database_that_stops_is_tried_until_it_is_back(database, postgres, tmp_path):
    store = opened(database, timeout_s=0.3)
    blocker = sa.create_engine(store_url(database, None))
    with blocker.connect() as connection:
        if blocker.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
        else:
            connection.exec_driver_sql("LOCK TABLE counters, decisions IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable):
            await store.write(lambda connection: decisions.put(connection, [record("dec_1")]))
        await asyncio.to_thread(wait_for, lambda: not store.up, 20, "notice of it")
        with pytest.raises(StoreUnavailable):  # at once, without waiting
            await store.write(lambda connection: decisions.put(connection, [record("dec_2")]))
    blocker.dispose()
    await asyncio.to_thread(wait_for, lambda: store.up, 20, "recovery")
    await store.write(lambda connection: decisions.put(connection, [record("dec_3")]))
    assert find(store, "dec_3") is not None
    assert find(store, "dec_2") is None
    store.close()


def test_a_wrong_place_is_said_without_the_password(tmp_path):
    for url in ("mysql://a:sesame@b/c", "sqlite://", "sesame"):
        with pytest.raises(StoreError) as caught:
            store_url(url, None)
        assert "sesame" not in str(caught.value)
    with pytest.raises(StoreError) as caught:
        opened(f"postgresql://a:sesame@/b?host={tmp_path}", timeout_s=1)
    assert "sesame" not in str(caught.value)
    (tmp_path / "demur.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError):
        Store.open(store_url(None, tmp_path))


def test_a_read_that_outlives_the_store_leaves_no_connection_behind(database):
    one = opened(database)
    begun, on, held = threading.Event(), threading.Event(), []

    def slowly(connection):
        held.append(connection.connection.dbapi_connection)
        begun.set()
        on.wait(20)

    reading = threading.Thread(target=one.read_now, args=(slowly,))
    reading.start()
    assert begun.wait(20)
    one.close()
    on.set()
    reading.join(20)
    with pytest.raises(Exception, match="closed"):
        held[0].execute("SELECT 1")


def test_audits_of_before_certify_at_the_smallest_rate_that_their_task_had(database):
    one = opened(database)
    draw(one, record("dec_1", drawn=True), record("dec_2", drawn=True, task="shapes"))
    put(one, record("dec_3", draw=Draw(0.9, 0.01, drawn=False)))

    def back(connection):
        connection.execute(sa.text("ALTER TABLE audits DROP COLUMN least_rate"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002'"))

    one.write_now(back)
    one.close()
    one = opened(database)
    audits = one.read_now(lambda connection: decisions.drawn(connection, one.options))
    assert {audit.decision.task: audit.least_rate for audit in audits} == {"colours": 0.01, "shapes": 0.5}
    one.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_migration_may_take_longer_than_a_statement(database):
    one = opened(database)
    draw(one, record("dec_1", drawn=True))
    said = (
        "ALTER TABLE audits DROP COLUMN least_rate",
        "UPDATE alembic_version SET version_num = '0002'",
        "CREATE FUNCTION slow() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END' LANGUAGE plpgsql",
        "CREATE TRIGGER slow AFTER UPDATE ON audits EXECUTE FUNCTION slow()",
    )
    one.write_now(lambda connection: [connection.execute(sa.text(statement)) for statement in said])
    one.close()
    one = opened(database, 1.0)
    (audit,) = one.read_now(lambda connection: decisions.drawn(connection, one.options))
    assert audit.least_rate == 0.5
    with pytest.raises(StoreUnavailable):
        one.read_now(lambda connection: connection.execute(sa.text("SELECT pg_sleep(1.5)")))
    one.close()


def test_a_database_whose_host_is_gone_is_not_waited_for_long():
    """The kernel probes a connection that nothing comes from; left alone it begins after two hours."""

    def timer(port):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, _, other, state, _, timer, *_ = line.split()
            if other.endswith(f":{port:04X}") and state == "01" and timer.startswith("02:"):
                return int(timer[3:], 16) / os.sysconf("SC_CLK_TCK")
        return None

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        port = silent.getsockname()[1]
        asking = pool.submit(opened, f"postgresql://demur@127.0.0.1:{port}/demur?gssencmode=disable", 5.0)
        wait_for(lambda: timer(port) is not None, 20, "a connection")
        assert timer(port) <= 5
        silent.close()
        assert isinstance(asking.exception(30), StoreError)
