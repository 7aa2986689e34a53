"""Decisions and audits in a store, in SQLite and in PostgreSQL: kept, numbered and let go of."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np

from demur.server.store import decisions, guarantees, upkeep

from .making import NOW, draw, find, give, opened, put, record


def test_a_decision_comes_back_as_it_was(store):
    scores = np.array([-1.0, -2.0, -np.inf])
    one = record("dec_1", scores=scores, input='{"a": 1}', key="k", subject="s", slice="de")
    put(store, one)
    found = find(store, "dec_1")
    for field in dataclasses.fields(one):
        assert np.array_equal(getattr(found.decision, field.name), getattr(one, field.name)), field.name
    assert (found.labels, found.audit) == ((), None)
    assert find(store, "dec_2") is None


def test_what_is_stored_again_changes_its_verdict_only(store):
    put(store, record("dec_1", verdict="trust"))
    put(store, record("dec_1", verdict="review", reason="audit_store_unavailable", p_correct=0.1))
    found = find(store, "dec_1").decision
    assert (found.verdict, found.reason, found.p_correct) == ("review", "audit_store_unavailable", 0.5)


def test_draws_are_fair_and_their_own_per_kind(store):
    u = np.array([[store.u(f"dec_{i}"), store.u(f"dec_{i}", "double")] for i in range(4_000)])
    assert u.min() >= 0
    assert u.max() < 1
    assert abs((u < 0.05).mean() - 0.05) < 4 * (0.05 * 0.95 / 8_000) ** 0.5
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.07


def test_processes_number_audits_and_labels_without_gaps(database):
    stores = [opened(database) for _ in range(2)]
    names = [f"dec_{i}" for i in range(60)]

    def work(i):
        one = stores[i % 2]
        draw(one, record(names[i], drawn=True))
        give(one, (names[i], "red"), key=str(i))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(len(names))))
    audits, given = stores[0].read_now(lambda connection: decisions.changes(connection, stores[0].options, 0, 0, 1_000))
    assert [one.seq for one in audits] == list(range(1, 61))
    assert [one.seq for one in given] == list(range(1, 61))
    for one in stores:
        one.close()


def test_a_label_never_comes_before_its_audit(store):
    draw(store, *(record(f"dec_{i}", drawn=True) for i in range(6)))
    give(store, *((f"dec_{i}", "blue") for i in (5, 0, 1, 2, 3, 4)))
    seen, after = set(), (0, 0)
    while True:
        audits, given = store.read_now(lambda connection, a=after: decisions.changes(connection, store.options, *a, 2))
        if not (audits or given):
            break
        seen |= {one.decision.id for one in audits}
        assert all(one.decision_id in seen and one.audit.decision.id == one.decision_id for one in given)
        after = (audits[-1].seq if audits else after[0], given[-1].seq if given else after[1])
    assert (len(seen), after) == (6, (6, 6))


def test_what_is_erased_stays_as_evidence_only_where_it_was_drawn(store):
    put(store, record("dec_1", subject="s"), record("dec_2"))
    draw(store, record("dec_3", drawn=True, subject="s", input="secret", key="k"))
    give(store, ("dec_3", "blue"), ("dec_1", "red"))
    assert store.write_now(lambda connection: upkeep.erase(connection, subject="s", now=NOW)) == 2
    assert find(store, "dec_1") is None
    assert find(store, "dec_3") is None
    assert give(store, ("dec_3", "red"))[0].problem == "unknown_id"
    (audit,) = store.read_now(lambda connection: decisions.drawn(connection, store.options))
    kept = audit.decision
    assert (audit.error, kept.guarantee, kept.input, kept.key, kept.subject, len(kept.logprobs)) == (
        True, "g", None, None, None, 0
    )  # fmt: skip
    assert store.write_now(lambda connection: upkeep.expire(connection, NOW + timedelta(seconds=1), NOW)) == 1
    assert store.read_now(upkeep.totals).decisions == 1


def test_an_erased_audit_waits_for_no_label_and_is_missing_only_if_it_was_due(store):
    draw(store, *(record(f"dec_{i}", drawn=True) for i in range(4)))
    give(store, ("dec_0", "blue"))
    *_, audit = store.read_now(lambda connection: decisions.drawn(connection, store.options))
    at_once, late = NOW, audit.due + timedelta(days=1)
    for name, now in (("dec_0", at_once), ("dec_1", at_once), ("dec_2", late)):
        assert store.write_now(lambda connection, n=name, t=now: upkeep.erase(connection, ids=[n], now=t)) == 1
    due = audit.due.timestamp()
    assert store.read_now(lambda connection: guarantees.outcomes(connection, "g", store.options)) == [
        (1, due, True), (2, None, None), (3, due, None), (4, due, None)
    ]  # fmt: skip
    assert store.read_now(guarantees.waiting) == [(audit.decision.task, 4, due)]
    erased = store.read_now(lambda connection: guarantees.erased_unlabelled(connection, range(1, 2_500)))
    assert erased == {2: True, 3: False}
    (counts,) = store.read_now(lambda connection: upkeep.audit_counts(connection, late)).values()
    assert (counts.labelled, counts.open, counts.expired) == (1, 1, 1)


def test_decisions_of_a_clock_that_was_ahead_keep_no_others(store, monkeypatch):
    monkeypatch.setattr(upkeep, "BATCH", 2)
    old, ahead = NOW - timedelta(days=2), NOW + timedelta(days=365)
    put(store, *(record(f"dec_{i}", at=ahead) for i in range(2)), record("dec_2", at=old), record("dec_3", at=NOW))
    assert store.write_now(lambda connection: upkeep.expire(connection, NOW - timedelta(days=1), NOW)) == 1
    assert [find(store, f"dec_{i}") is None for i in range(4)] == [False, False, True, False]
