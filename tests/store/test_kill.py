"""`kill -9` at any moment under load: nothing acknowledged is lost, no gaps, and metrics are what the table says.

`DEMUR_TEST_KILLS=20` kills more often than the suite does.
"""

import os
import random
import threading
import time
from itertools import count

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from demur.calibration import Outcome, RiskMonitor
from demur.server.loop.window import LEAST
from demur.server.store import decisions
from demur.server.store.database import store_url
from demur.server.store.store import Store
from tests.process.server import wait_for

from .loop_server import LoopServer

#: A few in the suite, since every server takes seconds to start.
KILLS = int(os.environ.get("DEMUR_TEST_KILLS", "4"))


class Caller(threading.Thread):
    """Decides and labels, a few labels wrong, and notes what was acknowledged, until told to stop."""

    numbers = count()

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.stop = url, threading.Event()
        self.audited, self.labelled, self.answered, self.faults = set(), {}, 0, []

    def run(self):
        while not self.stop.is_set():
            try:
                with httpx.Client(base_url=self.url, timeout=5) as client:
                    self._work(client)
            except httpx.HTTPError:
                self.stop.wait(0.02)

    def _work(self, client):
        while not self.stop.is_set():
            body = {"task": "route", "inputs": [f"{next(self.numbers)}" for _ in range(4)]}
            answers = [item["answer"] for item in client.post("/decide", json=body).json()["items"]]
            self.answered += len(answers)
            drawn = [one["id"] for one in answers if one["audit"]]
            self.audited |= set(drawn)
            items = [{"id": one, "label": "sales" if random.random() < 0.03 else "billing"} for one in drawn[1:]]
            if items:
                reply = client.post("/feedback", json={"items": items}, headers={"Idempotency-Key": drawn[0]})
                self.faults += [one for one in reply.json()["items"] if one["status"] != "stored"]
                self.labelled |= {item["id"]: item["label"] for item in items}


@pytest.mark.process
def test_nothing_acknowledged_is_lost(database, tmp_path):
    moments, server = random.Random(1), LoopServer(database, tmp_path)
    callers = [Caller(server.url) for _ in range(4)]
    for caller in callers:
        caller.start()
    for left in reversed(range(KILLS)):
        server.start()
        before = sum(caller.answered for caller in callers)
        wait_for(lambda before=before: sum(caller.answered for caller in callers) > before, 60, "an answer")
        if not left:  # calibration is shown from 50 labels on
            wait_for(lambda: sum(len(caller.labelled) for caller in callers) > LEAST, 60, "labels")
        time.sleep(moments.uniform(0, 0.4))  # any moment
        server.kill()
    for caller in callers:
        caller.stop.set()
        caller.join(20)
    store = Store.open(store_url(database, None), timeout_s=10)
    audits, labels = store.read_now(lambda connection: decisions.changes(connection, store.options, 0, 0, 10**6))
    heads = store.read_now(decisions.heads)
    store.close()
    assert [caller.faults for caller in callers] == [[]] * len(callers)
    kept = {audit.decision.id: audit.label for audit in audits}
    assert set().union(*(caller.audited for caller in callers)) <= kept.keys()
    given = {name: label for caller in callers for name, label in caller.labelled.items()}
    assert len(given) > KILLS
    assert {name: kept[name] for name in given} == given
    assert [audit.seq for audit in audits] == list(range(1, heads[0] + 1))
    assert [label.seq for label in labels] == list(range(1, heads[1] + 1))
    server.start()
    try:
        wait_for(lambda: _answers(server.url), 60, "the last start")
        shown = wait_for(lambda: _shown(server.url), 20, "metrics")
    finally:
        server.kill()
    assert shown == pytest.approx(recomputed(database), abs=1e-9)


def _answers(url):
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _shown(url):
    lines = [line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("demur_")]
    page = {name: float(value) for name, value in lines}
    at = 'slice="",task="route"'
    names = {
        "log W": f"demur_guarantee_log_evalue{{{at}}}",
        "estimate": f'demur_trusted_risk{{bound="estimate",{at}}}',
        "upper": f'demur_trusted_risk{{bound="upper",{at}}}',
        "recent": f'demur_trusted_risk{{bound="recent",{at}}}',
        "withdrawn": 'demur_certificate_state{slice="",state="withdrawn",task="route"}',
        "open": 'demur_audits{state="open",task="route"}',
        "expired": 'demur_audits{state="expired",task="route"}',
        "accuracy": 'demur_live_accuracy{task="route"}',
        "brier": 'demur_brier_score{task="route"}',
    }
    return {short: page[name] for short, name in names.items()} if names["accuracy"] in page else None


def recomputed(database):
    """The same from the table, in SQL and the formulas of the documents alone."""
    engine = sa.create_engine(store_url(database, None))
    with engine.connect() as connection:
        rows = connection.execute(sa.text(
            "SELECT a.guarantee, d.probabilities, d.rate, d.option, l.label FROM audits a "
            "JOIN decisions d ON d.seq = a.decision LEFT JOIN labels l ON l.seq = d.label ORDER BY a.seq"
        )).all()  # fmt: skip
        ((alpha, delta, state),) = connection.execute(sa.text("SELECT alpha, delta, state FROM guarantees")).all()
    engine.dispose()
    names = ("billing", "technical", "sales")
    codes = [
        Outcome.PENDING if label is None else Outcome(label != names[option])
        for guarantee, _, _, option, label in rows
        if guarantee is not None
    ]
    monitor = RiskMonitor.restored(codes, alpha, delta, withdrawn=state == "withdrawn")
    wrong, right = codes.count(Outcome.ERROR), codes.count(Outcome.CORRECT)
    labelled = [row for row in rows if row.label is not None][-1_000:]
    weight = [1 / row.rate for row in labelled]
    truth = [np.arange(3) == names.index(row.label) for row in labelled]
    distance = [
        ((np.frombuffer(row.probabilities, "<f8") - one) ** 2).sum() for row, one in zip(labelled, truth, strict=True)
    ]
    return {
        "log W": monitor.log_evalue,
        "estimate": wrong / (wrong + right),
        "upper": monitor.upper_bound,
        "recent": monitor.recent.estimate,
        "withdrawn": float(monitor.withdrawn),
        "open": sum(row.label is None for row in rows),
        "expired": 0,
        "accuracy": np.average([row.label == names[row.option] for row in labelled], weights=weight),
        "brier": np.average(distance, weights=weight),
    }
