"""A server whose database stops, is full or cannot be written: decisions go on, nothing acknowledged is lost."""

import itertools
import resource
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from demur.server.store.database import store_url
from tests.postgres import psql
from tests.process.server import wait_for

from .loop_server import LoopServer

#: Small, so that both ends are reached in a moment: decisions without audits, and decisions in memory.
MAX_UNAUDITED, BUFFER = 20, 60


class Traffic:
    """Decides and labels, and notes what was acknowledged."""

    def __init__(self, url):
        self.client = httpx.Client(base_url=url, timeout=20)
        self.numbers = itertools.count()
        self.answers = []

    def decide(self, count):
        body = {"task": "route", "inputs": [f"{next(self.numbers)}" for _ in range(count)]}
        reply = self.client.post("/decide", json=body)
        assert reply.status_code == 200
        items = reply.json()["items"]
        assert {item["status"] for item in items} == {200}
        new = [item["answer"] for item in items]
        self.answers += new
        return new

    def label(self, answer):
        return self.client.post("/feedback", json={"id": answer["id"], "label": "billing"})

    def shown(self, name):
        page = self.client.get("/metrics").text.splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in page if line.startswith(f"{name} "))

    @property
    def audited(self):
        return [one["id"] for one in self.answers if one["audit"]]


@contextmanager
def limited(server, size):
    """No file of the server's can grow beyond `size` bytes, as on a disk that is full; 0: nothing can be written."""
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def full(server, database, cluster):
    log = Path(f"{store_url(database, None).database}-wal")
    with limited(server, log.stat().st_size):
        yield


@contextmanager
def unwritable(server, database, cluster):
    with limited(server, 0):
        yield


@contextmanager
def stopped(server, database, cluster):
    cluster.stop()
    try:
        yield
    finally:
        cluster.start()


@contextmanager
def read_only(server, database, cluster):
    """As after a failover to a standby: the connections break, and what comes after takes no writes."""
    name = store_url(database, None).database
    for value in ("on", "off"):
        psql(cluster.place, f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        psql(
            cluster.place, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> current_database()"
        )
        if value == "on":
            yield


@pytest.mark.process
@pytest.mark.parametrize(
    ("database", "fault"),
    [("sqlite", full), ("sqlite", unwritable), ("postgresql", stopped), ("postgresql", read_only)],
    indirect=["database"],
)
def test_decisions_go_on_and_nothing_acknowledged_is_lost(database, fault, tmp_path, postgres_server):
    server = LoopServer(database, tmp_path, store_timeout_s=1.0, max_unaudited=MAX_UNAUDITED, log_buffer=BUFFER).start()
    traffic = Traffic(server.url)
    try:
        wait_for(lambda: _up(traffic), 90, "a server")
        assert {one["verdict"] for one in traffic.decide(40)} == {"trust"}
        first, second = [one for one in traffic.answers if one["audit"]][:2]
        assert traffic.label(first).json()["status"] == "stored"
        with fault(server, database, postgres_server):
            wait_for(lambda: traffic.decide(1)[0]["reason"] == "audit_store_unavailable", 20, "a refused audit")
            refused = traffic.label(second)
            assert refused.status_code == 503
            assert "Retry-After" in refused.headers
            # Of those not drawn some are still trusted, then none.
            count = "demur_unaudited_decisions"
            wait_for(lambda: traffic.decide(4) and traffic.shown(count) > MAX_UNAUDITED, 20, "an end of trust")
            assert {one["verdict"] for one in traffic.decide(BUFFER)} == {"review"}
            assert traffic.shown(count) > MAX_UNAUDITED
            assert traffic.shown('demur_store_lost_total{reason="full"}') > 0
            audited = len(traffic.audited)
        wait_for(lambda: traffic.shown("demur_store_up") and not traffic.shown("demur_store_buffered"), 60, "recovery")
        wait_for(lambda: {one["verdict"] for one in traffic.decide(30)} == {"trust"}, 20, "trust")
        wait_for(lambda: traffic.label(second).status_code == 200, 20, "feedback")
        wait_for(lambda: not traffic.shown("demur_store_buffered"), 20, "an empty buffer")
        lost = traffic.shown('demur_store_lost_total{reason="full"}')
        assert len(traffic.audited) > audited
    finally:
        server.kill()
        traffic.client.close()
    engine = sa.create_engine(store_url(database, None))
    with engine.connect() as connection:
        stored = set(connection.scalars(sa.text("SELECT id FROM decisions")))
        drawn = "SELECT d.id FROM audits a JOIN decisions d ON d.seq = a.decision"
        audits = set(connection.scalars(sa.text(drawn)))
        labelled = set(connection.scalars(sa.text(f"{drawn} WHERE d.label IS NOT NULL")))
    engine.dispose()
    answered = {one["id"] for one in traffic.answers}
    assert len(answered - stored) == lost
    assert set(traffic.audited) <= audits
    assert labelled == {first["id"], second["id"]}


def _up(traffic):
    try:
        return traffic.client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
