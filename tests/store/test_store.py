"""The store, in SQLite and in PostgreSQL."""

import asyncio
import dataclasses
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner

from demur.decision.question import Option, Question
from demur.server.cli import main
from demur.server.store import decisions, guarantees, labels, review, schema, upkeep
from demur.server.store.database import store_url
from demur.server.store.errors import StoreError, StoreUnavailable
from demur.server.store.labels import LabelGiven
from demur.server.store.review import Place
from demur.server.store.store import Store
from demur.training.recipe import Source
from demur.training.sources import read_source
from tests.process.server import wait_for

from .making import NOW, record


def opened(url, timeout_s=5.0):
    return Store.open(store_url(url, None), timeout_s=timeout_s)


@pytest.fixture
def store(database):
    one = opened(database)
    yield one
    one.close()


def put(store, *records):
    store.write_now(lambda connection: decisions.put(connection, records))


def draw(store, *records, double=False):
    for one in records:
        store.write_now(
            lambda connection, one=one: decisions.put_drawn(connection, one, due=NOW + timedelta(days=7), double=double)
        )


def give(store, *given, key="ann", now=NOW):
    items = [one if isinstance(one, LabelGiven) else LabelGiven(*one) for one in given]
    return store.write_now(lambda connection: labels.give(connection, store.options, items, key=key, now=now))


def find(store, name):
    return store.read_now(lambda connection: decisions.find(connection, store.options, name))


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


def test_every_label_gets_its_own_answer(store):
    put(store, record("dec_1"))
    draw(store, record("dec_2", drawn=True))
    ahead = NOW + timedelta(hours=1)
    given = [
        ("dec_1", "green"),
        ("dec_2", "red"),
        ("dec_0", "red"),
        ("dec_1", "pink"),
        LabelGiven("dec_2", "blue", at=ahead),
    ]
    results = [(one.status, one.evidence, one.problem) for one in give(store, *given)]
    assert results == [
        ("stored", False, None),
        ("stored", True, None),
        ("rejected", False, "unknown_id"),
        ("rejected", False, "not_an_option"),
        ("rejected", True, "in_the_future"),
    ]
    assert [one.status for one in give(store, ("dec_1", "green"), ("dec_2", "red"))] == ["unchanged", "unchanged"]
    assert find(store, "dec_2").audit.error is False


def test_corrections_keep_history(store):
    draw(store, record("dec_1", drawn=True))
    assert [one.status for one in give(store, ("dec_1", "red"), ("dec_1", "blue"))] == ["stored", "corrected"]
    assert give(store, ("dec_1", "green"), key="bob")[0].status == "corrected"
    found = find(store, "dec_1")
    assert [(one.seq, one.label, one.corrects, one.key) for one in found.labels] == [
        (1, "red", None, "ann"),
        (2, "blue", 1, "ann"),
        (3, "green", 2, "bob"),
    ]
    assert (found.audit.label, found.audit.error, found.audit.open) == ("green", True, False)


def test_two_people_label_an_audit_without_correcting_each_other(store):
    draw(store, record("dec_1", drawn=True), double=True)
    assert give(store, ("dec_1", "red"))[0].status == "stored"
    assert find(store, "dec_1").audit.open
    page = {who: queue(store, person=who)[0] for who in ("ann", "bob")}
    assert ([item.id for item in page["ann"]], [item.id for item in page["bob"]]) == ([], ["dec_1"])
    assert give(store, ("dec_1", "blue"), key="bob")[0].status == "stored"
    audit = find(store, "dec_1").audit
    assert (audit.label, audit.second, audit.open) == ("red", "blue", False)
    assert store.read_now(upkeep.disagreement) == {"colours": (1, 1)}
    give(store, ("dec_1", "red"), key="bob")
    assert store.read_now(upkeep.disagreement) == {"colours": (1, 0)}


def test_a_person_of_two_corrects_their_own_label_whatever_its_source(store):
    draw(store, record("dec_1", drawn=True), double=True)
    given = [
        ("ann", "red", "first", "stored", False),
        ("ann", "blue", "recheck", "corrected", False),
        ("bob", "blue", None, "stored", True),
        ("bob", "green", "recheck", "corrected", True),
        ("ann", "red", None, "corrected", False),
        ("ann", "red", "again", "unchanged", False),
        ("bob", "green", None, "unchanged", True),
    ]
    for who, label, source, status, second in given:
        (result,) = give(store, LabelGiven("dec_1", label, source), key=who)
        assert (result.status, result.second) == (status, second)
    found = find(store, "dec_1")
    assert (found.audit.label, found.audit.second, found.audit.open) == ("red", "green", False)
    assert [one.corrects for one in found.labels] == [None, 1, None, 3, 2]


def test_after_two_people_a_third_corrects_the_label_in_force(store):
    draw(store, record("dec_1", drawn=True), double=True)
    give(store, ("dec_1", "red"))
    give(store, ("dec_1", "blue"), key="bob")
    for who, label, expected in (("boss", "green", ("green", "blue")), ("bob", "red", ("green", "red"))):
        (result,) = give(store, ("dec_1", label), key=who)
        audit = find(store, "dec_1").audit
        assert (result.status, result.second, (audit.label, audit.second)) == ("corrected", who == "bob", expected)
    # Both labels of one request are taken alike.
    draw(store, record("dec_2", drawn=True), double=True)
    assert [one.second for one in give(store, ("dec_2", "red"), ("dec_2", "blue"))] == [False, False]
    assert store.read_now(upkeep.disagreement) == {"colours": (1, 1)}


def test_where_nobody_can_be_told_apart_one_label_is_all_that_is_asked_for(store):
    draw(store, *(record(f"dec_{i}", drawn=True) for i in (1, 2)), double=True)
    assert [give(store, ("dec_1", label), key=None)[0].status for label in ("red", "blue")] == ["stored", "corrected"]
    assert [item.id for item in queue(store, person=None)[0]] == ["dec_2"]
    assert [item.id for item in queue(store, person="ann")[0]] == ["dec_2"]
    assert not find(store, "dec_1").audit.open
    give(store, ("dec_2", "red"))
    assert (queue(store, person=None)[0], [item.id for item in queue(store, person="bob")[0]]) == ([], ["dec_2"])
    # Who gave the first label is not known, so the next is no second person's.
    assert give(store, ("dec_1", "green"))[0].second is False
    assert store.read_now(upkeep.disagreement) == {}


def queue(store, person="ann", after=None, limit=10, kind=None, now=NOW):
    return store.read_now(
        lambda connection: review.page(
            connection, store.options, task=None, kind=kind, after=after, limit=limit, person=person, now=now
        )
    )


def test_the_queue_shows_audits_first_oldest_first_and_blind(store):
    put(store, record("dec_r1"), record("dec_d", verdict="defer"), record("dec_t", verdict="trust"), record("dec_r2"))
    draw(store, record("dec_a1", drawn=True, verdict="trust", input="x"), record("dec_a2", drawn=True))
    first, place = queue(store, limit=3)
    assert [(one.id, one.kind) for one in first] == [("dec_a1", "audit"), ("dec_a2", "audit"), ("dec_r1", "review")]
    assert (first[0].decision, first[0].p_correct, first[0].input) == (None, None, "x")
    assert first[2].decision == "red"
    rest, end = queue(store, after=place)
    assert [one.id for one in rest] == ["dec_r2", "dec_d"]
    assert end is None
    give(store, ("dec_a1", "red"), ("dec_r2", "red"))
    assert [one.id for one in queue(store)[0]] == ["dec_a2", "dec_r1", "dec_d"]
    assert queue(store, after=Place("defer", 10**6)) == ([], None)


def test_a_claim_keeps_an_item_from_others_until_it_ends(store):
    put(store, record("dec_1"), record("dec_2"))
    until = NOW + timedelta(minutes=10)
    claim = lambda ids, person: store.write_now(  # noqa: E731
        lambda connection: review.claim(connection, ids, person=person, until=until, now=NOW)
    )
    assert claim(["dec_1", "dec_9"], "ann") == {"dec_1": True}
    assert claim(["dec_1", "dec_2"], "bob") == {"dec_1": False, "dec_2": True}
    assert [one.id for one in queue(store, "ann")[0]] == ["dec_1"]
    assert [one.id for one in queue(store, "bob", now=until)[0]] == ["dec_1", "dec_2"]
    released = store.write_now(lambda connection: review.release(connection, ["dec_1", "dec_2"], person="ann"))
    assert released == {"dec_1": True, "dec_2": False}
    # A clock that was set back by a year does not keep the item for one.
    assert [one.id for one in queue(store, "ann", now=NOW - timedelta(days=365))[0]] == ["dec_1", "dec_2"]


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


def test_what_was_learned_from_feedback_never_certifies(database, tmp_path, monkeypatch):
    """Labels of decisions that were not drawn become training data; audits and their inputs stay out."""
    one = opened(database)
    rows = [
        record(name, input=text, input_hash=text, drawn=False)
        for name, text in (("a", "sky"), ("b", "grass"), ("c", "blood"), ("d", "sea"), ("other", "sun"))
    ]
    rows[-1] = dataclasses.replace(rows[-1], task="animals")
    put(one, *rows, record("silent", input_hash="x"))
    # Somebody else asked what "sea" is, and that was drawn.
    draw(one, record("drawn", drawn=True, input="sea", input_hash="sea"), record("e", drawn=True, input="rose"))
    given = [
        ("a", "blue"),
        ("b", "red"),
        ("d", "blue"),
        ("e", "red"),
        ("drawn", "blue"),
        ("other", "red"),
        ("silent", "red"),
    ]
    give(one, *given)
    give(one, ("b", "green"))
    one.close()
    monkeypatch.setenv("DEMUR_STORE_URL", database)
    found = CliRunner().invoke(main, ["store", "export", "--training", "--task", "colours"])
    assert found.exit_code == 0, found.output
    assert [json.loads(line) for line in found.stdout.splitlines()] == [
        {"id": "a", "input": "sky", "label": "blue"},
        {"id": "b", "input": "grass", "label": "green"},
    ]
    (tmp_path / "train.jsonl").write_text(found.stdout)
    question = Question("Which?", tuple(Option(name) for name in ("red", "green", "blue")))
    read = read_source(Source(path="train.jsonl"), tmp_path, question, drop=False)
    assert [(row.text, row.label) for row in read.rows] == [("sky", 2), ("grass", 1)]
    audits = [json.loads(line)["id"] for line in CliRunner().invoke(main, ["store", "export"]).stdout.splitlines()]
    assert audits == ["drawn", "e"]
    assert "needs a --task" in CliRunner().invoke(main, ["store", "export", "--training"]).output
