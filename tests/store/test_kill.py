"""`kill -9` at any moment under load: nothing that was acknowledged is lost, and the order of events has no gap."""

import multiprocessing
import random
import threading
import time
from itertools import count

import httpx
import pytest

from demur.server.store import decisions
from demur.server.store.database import store_url
from demur.server.store.store import Store
from tests.process.server import free_port, wait_for

#: A few in the suite, since every server takes seconds to start; raise it to look longer.
KILLS = 4


def _serve(database, port):
    import asyncio

    from tests.store.loop_server import main

    asyncio.run(main(database, port))


class Caller(threading.Thread):
    """Decides and labels, and notes what was acknowledged, until told to stop."""

    numbers = count()

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.stop = url, threading.Event()
        self.audited, self.labelled, self.answered = set(), {}, 0

    def run(self):
        while not self.stop.is_set():
            try:
                with httpx.Client(base_url=self.url, timeout=5) as client:
                    self._work(client)
            except httpx.HTTPError:
                self.stop.wait(0.02)

    def _work(self, client):
        while not self.stop.is_set():
            body = {"task": "colours", "inputs": [f"{next(self.numbers)}" for _ in range(4)]}
            answers = [item["answer"] for item in client.post("/decide", json=body).json()["items"]]
            self.answered += len(answers)
            drawn = [one["id"] for one in answers if one["audit"]]
            self.audited |= set(drawn)
            items = [{"id": one, "label": random.choice(("red", "green"))} for one in drawn]
            if items:
                reply = client.post("/feedback", json={"items": items}, headers={"Idempotency-Key": drawn[0]})
                assert {one["status"] for one in reply.json()["items"]} == {"stored"}
                self.labelled |= {item["id"]: item["label"] for item in items}


@pytest.mark.process
def test_nothing_acknowledged_is_lost(database):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store.loop_server"])
    moments, port = random.Random(1), free_port()
    url = f"http://127.0.0.1:{port}"
    callers = [Caller(url) for _ in range(4)]
    for caller in callers:
        caller.start()
    for _ in range(KILLS):
        server = context.Process(target=_serve, args=(database, port), daemon=True)
        server.start()
        before = sum(caller.answered for caller in callers)
        wait_for(lambda before=before: sum(caller.answered for caller in callers) > before, 60, "an answer")
        time.sleep(moments.uniform(0, 0.4))  # any moment
        server.kill()
        server.join(20)
    for caller in callers:
        caller.stop.set()
        caller.join(20)
    store = Store.open(store_url(database, None), timeout_s=10)
    audits, labels = store.read_now(lambda connection: decisions.changes(connection, store.options, 0, 0, 10**6))
    heads = store.read_now(decisions.heads)
    store.close()
    kept = {audit.decision.id: audit.label for audit in audits}
    assert set().union(*(caller.audited for caller in callers)) <= kept.keys()
    given = {name: label for caller in callers for name, label in caller.labelled.items()}
    assert len(given) > KILLS
    assert {name: kept[name] for name in given} == given
    assert [audit.seq for audit in audits] == list(range(1, heads[0] + 1))
    assert [label.seq for label in labels] == list(range(1, heads[1] + 1))
