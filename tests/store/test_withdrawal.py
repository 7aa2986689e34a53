"""Two server processes on one PostgreSQL: how soon a withdrawal holds in the other, and a state that cannot be read."""

import itertools
import time

import httpx
import pytest

from tests.process.server import wait_for

from .loop_server import LoopServer

#: Seconds until a withdrawal holds in other processes, and until a process that cannot read the state trusts nothing.
ELSEWHERE, UNREAD = 2.0, 10.0


class Process:
    """A server, and what it answers when."""

    numbers = itertools.count()

    def __init__(self, database, place, **settings):
        self.server = LoopServer(database, place, **settings).start()
        self.client = httpx.Client(base_url=self.server.url, timeout=20)

    def ready(self):
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def decide(self):
        return self.client.post("/decide", json={"task": "route", "input": str(next(self.numbers))}).json()

    def metrics(self):
        lines = self.client.get("/metrics").text.splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line.startswith("demur_"))

    def last_trusted(self, reason, seconds):
        """When the last trusted decision was asked for, before those that are not for this reason."""
        last, until = None, time.monotonic() + seconds
        while time.monotonic() < until:
            asked, answer = time.monotonic(), self.decide()
            if answer["verdict"] == "trust":
                last = asked
            elif answer["reason"] == reason:
                return last
        raise AssertionError(f"no {reason} within {seconds} s")


@pytest.fixture
def processes(database, tmp_path):
    # Decisions without a store are trusted for long here, so that what ends trust is the state alone.
    one = Process(database, tmp_path, audits=0.2, max_unaudited=10**6, store_timeout_s=1.0)
    wait_for(one.ready, 90, "a server")
    both = [one, Process(database, tmp_path, audits=0.2, max_unaudited=10**6, store_timeout_s=1.0)]
    wait_for(both[1].ready, 90, "another")
    yield both
    for each in both:
        each.server.kill()
        each.client.close()


@pytest.mark.process
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_withdrawal_holds_everywhere_in_time_and_an_unread_state_is_not_trusted(processes, postgres_server):
    one, other = processes
    for each in processes:
        wait_for(lambda each=each: each.decide()["verdict"] == "trust", 20, "trust")
    postgres_server.stop()
    stopped = time.monotonic()
    try:
        last = other.last_trusted("guarantee_unknown", UNREAD + 5)
        assert last is not None
        assert last - stopped <= UNREAD
        assert "trust" not in {other.decide()["verdict"] for _ in range(50)}
    finally:
        postgres_server.start()
    for each in processes:
        wait_for(lambda each=each: each.decide()["verdict"] == "trust", 30, "trust again")
    drawn = wait_for(lambda: _drawn(one, 25), 30, "audits")
    taken = one.client.post("/feedback", json={"items": [{"id": each, "label": "sales"} for each in drawn]})
    done = time.monotonic()
    assert {item["status"] for item in taken.json()["items"]} == {"stored"}
    assert "trust" not in {one.decide()["verdict"] for _ in range(5)}
    last = other.last_trusted("certificate_withdrawn", ELSEWHERE + 5)
    assert last is None or last - done <= ELSEWHERE
    names = [
        name for name in one.metrics() if name.startswith(("demur_guarantee", "demur_trusted", "demur_certificate"))
    ]
    wait_for(lambda: _same(processes, names), 10, "agreement")


def _drawn(process, count):
    """Audited decisions of this process, as its answers say."""
    found = [answer["id"] for answer in (process.decide() for _ in range(8 * count)) if answer["audit"]]
    return found[:count] if len(found) >= count else None


def _same(processes, names):
    pages = [process.metrics() for process in processes]
    return all(pages[0].get(name) == page.get(name) for page in pages for name in names)
