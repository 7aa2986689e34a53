"""Decisions are kept, labels come back, people are asked: over the wire, on SQLite and PostgreSQL."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pytest
import sqlalchemy as sa

from demur.clients import AsyncClient
from demur.clients import Conflict as ClientConflict
from demur.decision.task import AuditSpec, DecisionSpec, Task
from demur.server.store import decisions
from demur.server.store.database import store_url
from demur.server.store.store import Store
from tests.process.server import wait_for
from tests.store.making import record

from .conftest import INLINE, TEAMS

ALWAYS, NEVER = AuditSpec(1, 1, 1), AuditSpec(0, 0, 0)
TASKS = {
    "audited": Task("audited", DecisionSpec(TEAMS), audit=ALWAYS, log_inputs=True, show_audit=True, content_hash="a"),
    "twice": Task("twice", DecisionSpec(TEAMS), audit=ALWAYS, log_inputs=True, double_label=1.0, content_hash="c"),
    "plain": Task("plain", DecisionSpec(TEAMS), audit=NEVER, content_hash="b"),
}
KEYS = {"api_keys": "caller", "feedback_keys": "ann:aaa,bob:bbb", "admin_keys": "boss"}


@asynccontextmanager
async def served(rig, database, **settings):
    """A client of a server with a store, and the server's parts."""
    built = rig(store_url=database, **settings)
    built.registry.current = TASKS
    loop = built.app.services.loop
    loop.start()
    try:
        async with built.client() as client:
            yield client, built
    finally:
        await loop.aclose()


def as_key(key):
    return {"Authorization": f"Bearer {key}"}


async def decide(client, task, *inputs, **more):
    reply = await client.post("/decide", json={"task": task, "inputs": list(inputs)}, **more)
    return [item["answer"] for item in reply.json()["items"]]


async def stored(client, decision_id, **more):
    """The decision, right after its answer."""
    reply = await client.get(f"/decisions/{decision_id}", **more)
    assert reply.status_code == 200
    return reply.json()


async def test_labels_come_back_and_are_answered_one_by_one(rig, database):
    async with served(rig, database) as (client, _):
        (audited,) = await decide(client, "audited", "one")
        (plain,) = await decide(client, "plain", "two")
        assert (audited["audit"], "audit" in plain) == (True, False)
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        items = [
            {"id": audited["id"], "label": "billing", "source": "reviewer"},
            {"id": plain["id"], "label": "sales"},
            {"id": plain["id"], "label": "elsewhere"},
            {"id": "dec_nothing", "label": "sales"},
            {"id": audited["id"], "label": "sales", "at": tomorrow},
        ]
        reply = await client.post("/feedback", json={"items": items})
        assert [(one["status"], one["evidence"], one["problem"]) for one in reply.json()["items"]] == [
            ("stored", True, None),
            ("stored", False, None),
            ("rejected", False, "not_an_option"),
            ("rejected", False, "unknown_id"),
            ("rejected", True, "in_the_future"),
        ]
        again = await client.post("/feedback", json=items[1])
        assert (again.json()["status"], again.status_code) == ("unchanged", 200)
        assert (await client.post("/feedback", json=items[3])).status_code == 404
        assert (await client.post("/feedback", json=items[2])).status_code == 422
        shown = await stored(client, audited["id"])
        assert ([one["label"] for one in shown["labels"]], shown["audit"]["state"]) == (["billing"], "labelled")
        assert shown["input"] == "one"
        assert (await stored(client, plain["id"]))["input"] is None
        page = (await client.get("/metrics")).text
        assert 'demur_feedback_total{evidence="true",source="reviewer",task="audited"} 1.0' in page
        assert "demur_store_up 1.0" in page


async def test_limits_and_bad_bodies(rig, database):
    async with served(rig, database) as (client, _):
        many = await client.post("/feedback", json={"items": [{"id": "dec_1", "label": "x"}] * 10_000})
        assert (many.status_code, many.json()["limit"]) == (413, 1_000)
        for body in ([], {}, {"items": []}, {"id": "dec_1"}, {"id": "dec_1", "label": "x", "at": "2026-01-01"}):
            assert (await client.post("/feedback", json=body)).status_code == 422
        for query in ("kind=x", "after=audit", "limit=0"):
            assert (await client.get(f"/review?{query}")).status_code == 400


async def test_absurd_values_break_nothing(rig, database):
    async with served(rig, database) as (client, built):
        (one,) = await decide(client, "audited", "a\0b")
        assert one["audit"] is True
        await decide(client, "plain", "c\0d", "e")
        assert (await stored(client, one["id"]))["input"] == "a\ufffdb"
        for at in ("0001-01-01T00:00:00+23:59", "1969-12-31T00:00:00Z", "9999-12-31T23:59:59-23:59"):
            reply = await client.post("/feedback", json={"id": one["id"], "label": "sales", "at": at})
            assert reply.status_code == 422
        for path, body in (("/feedback", {"id": "dec_\0", "label": "sales"}), ("/review/claim", {"ids": ["\0"]})):
            assert (await client.post(path, json=body)).status_code == 422
        assert (await client.get("/review?task=%00")).status_code == 400
        assert (await client.get("/decisions/dec_%00")).status_code == 404
        await asyncio.to_thread(wait_for, lambda: not built.app.services.loop.log.buffered, 20, "an empty buffer")
        assert built.app.services.loop.log.lost.total() == 0


async def test_inline_questions_are_kept_where_that_is_set_and_never_audited(rig, database):
    async with served(rig, database, log_adhoc=True) as (client, _):
        answer = (await client.post("/decide", json=INLINE)).json()
        found = await stored(client, answer["id"])
        assert (found["task"], found["decision"], "audit" in found) == ("adhoc", answer["decision"], False)
        label = await client.post("/feedback", json={"id": answer["id"], "label": "yes"})
        assert (label.json()["status"], label.json()["evidence"]) == ("stored", False)
        assert {item["kind"] for item in (await client.get("/review")).json()["items"]} <= {"review", "defer"}


async def test_options_with_a_nul_are_labelled_like_any_other(rig, database):
    async with served(rig, database, log_adhoc=True) as (client, _):
        answer = (await client.post("/decide", json=INLINE | {"options": ["a\0b", "c"]})).json()
        shown = await stored(client, answer["id"])
        assert set(shown["probabilities"]) == {"a\ufffdb", "c"}
        for label, status in (("c", "stored"), ("a\0b", "corrected"), ("a\ufffdb", "unchanged"), ("a\0c", "rejected")):
            reply = await client.post("/feedback", json={"items": [{"id": answer["id"], "label": label}]})
            assert reply.json()["items"][0]["status"] == status
        assert [one["label"] for one in (await stored(client, answer["id"]))["labels"]] == ["c", "a\ufffdb"]


async def test_what_is_older_than_the_retention_goes(rig, database):
    old = [record("dec_old", at=datetime.now(UTC) - timedelta(days=2)), record("dec_new", at=datetime.now(UTC))]
    first = Store.open(store_url(database, None))
    first.write_now(lambda connection: decisions.put(connection, old))
    first.close()
    async with served(rig, database, retention_days=1, audit_days=0.5) as (client, _):
        async with asyncio.timeout(20):
            while (await client.get("/decisions/dec_old")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await client.get("/decisions/dec_new")).status_code == 200


async def test_a_decision_that_is_refused_takes_no_other_along(rig, database):
    async with served(rig, database) as (client, built):
        log = built.app.services.loop.log
        for i in range(20):
            name = f"dec_{i}"
            log.put(name, partial(record, name, **{3: {"no": "field"}, 7: {"model": None}}.get(i, {})))
        await asyncio.to_thread(wait_for, lambda: not log.buffered, 20, "an empty buffer")
        assert dict(log.lost) == {"refused": 2}
        found = [(await client.get(f"/decisions/dec_{i}")).status_code for i in range(20)]
        assert [i for i, status in enumerate(found) if status != 200] == [3, 7]


async def test_the_client_does_all_of_it(rig, database):
    async with served(rig, database, **KEYS) as (_, built):
        people = [
            AsyncClient("http://demur.test", api_key=key, transport=httpx.ASGITransport(built.app))
            for key in ("aaa", "bbb")
        ]
        ann, bob = people
        audits = [await ann.decide(str(i), task="audited") for i in range(3)]
        assert [item.id async for item in ann.review("audited", "audit", page_size=2)] == [one.id for one in audits]
        (claim,) = await ann.claim([audits[0].id])
        assert claim.claimed
        assert [item.id async for item in bob.review()] == [one.id for one in audits[1:]]
        (release,) = await ann.release([audits[0].id])
        assert release.released
        first = await ann.feedback(audits[0].id, "sales", idempotency_key="k")
        assert first == await ann.feedback(audits[0].id, "sales", idempotency_key="k")
        with pytest.raises(ClientConflict):
            await ann.feedback(audits[0].id, "billing", idempotency_key="k")
        results = await bob.feedback_many([(audits[0].id, "billing"), (audits[1].id, "sales"), ("dec_0", "sales")])
        assert [one.status for one in results] == ["corrected", "stored", "rejected"]
        found = await ann.decision(audits[0].id)
        assert [(one.label, one.key) for one in found.labels] == [("sales", "ann"), ("billing", "bob")]
        for each in people:
            await each.aclose()


async def test_a_repeated_request_gets_its_first_answer(rig, database):
    async with served(rig, database) as (client, _):
        (one,) = await decide(client, "audited", "one")
        headers = {"Idempotency-Key": "k1"}
        body = {"id": one["id"], "label": "sales"}
        first, *rest = await asyncio.gather(*(client.post("/feedback", json=body, headers=headers) for _ in range(8)))
        assert first.json()["status"] == "stored"
        assert {reply.text for reply in rest} == {first.text}
        other = await client.post("/feedback", json=body | {"label": "billing"}, headers=headers)
        assert other.status_code == 409
        assert len((await stored(client, one["id"]))["labels"]) == 1


async def test_a_first_answer_stays_whatever_is_stored_afterwards(rig, database):
    async with served(rig, database) as (client, _):
        (one,) = await decide(client, "audited", "one")
        items = [{"id": one["id"], "label": "sales"}, {"id": "dec_late", "label": "blue"}]

        async def statuses(key):
            reply = await client.post("/feedback", json={"items": items}, headers={"Idempotency-Key": key})
            return [item["status"] for item in reply.json()["items"]]

        assert await statuses("k1") == ["stored", "rejected"]
        late = Store.open(store_url(database, None))
        late.write_now(lambda connection: decisions.put(connection, [record("dec_late")]))
        late.close()
        assert await statuses("k1") == ["stored", "rejected"]
        assert await statuses("k2") == ["unchanged", "stored"]
        other = await client.post("/feedback", json=items[0], headers={"Idempotency-Key": "k1"})
        assert other.status_code == 409


async def test_rights(rig, database):
    async with served(rig, database, **KEYS) as (client, _):
        (one,) = await decide(client, "audited", "one", headers=as_key("caller"))
        body = {"id": one["id"], "label": "sales"}
        assert (await client.post("/feedback", json=body, headers=as_key("caller"))).status_code == 403
        assert (await client.get("/review", headers=as_key("caller"))).status_code == 403
        assert (await client.get(f"/decisions/{one['id']}", headers=as_key("caller"))).status_code == 200
        assert (await client.post("/feedback", json=body, headers=as_key("bbb"))).json()["status"] == "stored"
        assert (await stored(client, one["id"], headers=as_key("boss")))["labels"][0]["key"] == "bob"


async def test_an_audit_is_blind_to_whoever_is_to_label_it_wherever_it_is_looked_at(rig, database):
    async with served(rig, database, **KEYS) as (client, _):
        for who in ("caller", "aaa"):  # also to a key that asked for the decision itself
            (one,) = await decide(client, "twice", f"of {who}", headers=as_key(who))
            (queued,) = (await client.get("/review", headers=as_key("aaa"))).json()["items"]
            assert await stored(client, one["id"], headers=as_key("aaa")) == queued
            assert not queued.keys() & {"decision", "verdict", "reason", "probabilities", "p_correct", "labels"}
            assert (queued["kind"], queued["input"], queued["options"]) == ("audit", f"of {who}", [*TEAMS.names])
            assert "decision" in await stored(client, one["id"], headers=as_key("boss"))
            body = {"id": one["id"], "label": "sales"}
            for key in ("aaa", "bbb"):
                assert "labels" not in await stored(client, one["id"], headers=as_key(key))
                told = (await client.post("/feedback", json=body, headers=as_key(key))).json()
                assert (told["status"], told["second"]) == ("stored", key == "bbb")
                assert len((await stored(client, one["id"], headers=as_key(key)))["labels"]) == 1 + (key == "bbb")
            assert "decision" in await stored(client, one["id"], headers=as_key("aaa"))


async def test_labels_do_not_tell_a_caller_that_a_decision_was_drawn(rig, database):
    async with served(rig, database, **KEYS) as (client, _):
        (drawn,) = await decide(client, "twice", "one", headers=as_key("caller"))
        (other,) = await decide(client, "plain", "two", headers=as_key("caller"))
        shown = []
        for one in (drawn, other):
            for key, label in (("aaa", "sales"), ("bbb", "billing"), ("boss", "billing")):
                await client.post("/feedback", json={"id": one["id"], "label": label}, headers=as_key(key))
            shown.append(await stored(client, one["id"], headers=as_key("caller")))
        assert shown[0].keys() == shown[1].keys()
        for each in shown:
            assert {(one["evidence"], one["second"]) for one in each["labels"]} == {(False, False)}
            seqs = [one["seq"] for one in each["labels"]]
            assert [one["corrects"] for one in each["labels"]] == [None, *seqs[:-1]]
        assert [one["second"] for one in (await stored(client, drawn["id"], headers=as_key("boss")))["labels"]] == [
            False,
            True,
            False,
        ]


async def test_another_keys_decision_is_not_shown(rig, database):
    async with served(rig, database, api_keys="caller,other") as (client, _):
        (one,) = await decide(client, "audited", "one", headers=as_key("caller"))
        assert (await client.get(f"/decisions/{one['id']}", headers=as_key("other"))).status_code == 404


async def test_two_people_work_through_the_queue(rig, database):
    async with served(rig, database, **KEYS) as (client, _):
        ann, bob = {"headers": as_key("aaa")}, {"headers": as_key("bbb")}
        audits = await decide(client, "audited", "1", "2", "3", **ann)
        (other,) = await decide(client, "plain", "4", **ann)
        await stored(client, other["id"], **ann)
        page = (await client.get("/review?limit=3", **ann)).json()
        assert {item["id"] for item in page["items"]} == {one["id"] for one in audits}
        assert all("decision" not in item and item["input"] in "123" for item in page["items"])
        rest = (await client.get("/review", params={"after": page["next"]}, **ann)).json()
        assert ([item["id"] for item in rest["items"]], rest["next"]) == ([other["id"]], None)
        mine = page["items"][0]["id"]
        claimed = (await client.post("/review/claim", json={"ids": [mine, "dec_0"]}, **ann)).json()["items"]
        assert [(one["claimed"], one.get("problem")) for one in claimed] == [(True, None), (False, "unknown_id")]
        taken = (await client.post("/review/claim", json={"ids": [mine]}, **bob)).json()["items"]
        assert taken[0]["problem"] == "claimed_by_another"
        assert mine not in {item["id"] for item in (await client.get("/review", **bob)).json()["items"]}
        released = await client.post("/review/release", json={"ids": [mine]}, **ann)
        assert released.json() == {"items": [{"id": mine, "released": True}]}


async def test_without_a_store_the_loop_says_what_to_set(plain):
    client, _ = plain
    asked = (("POST", "/feedback"), ("GET", "/review"), ("GET", "/decisions/x"))
    for reply in [await client.request(method, path) for method, path in asked]:
        assert reply.status_code == 409
        assert "state-dir" in reply.json()["detail"]


async def test_decisions_go_on_while_the_store_is_stopped(rig, database):
    async with served(rig, database, store_timeout_s=0.3, log_buffer=3) as (client, built):
        loop = built.app.services.loop
        blocker = sa.create_engine(store_url(database, None))
        with blocker.connect() as connection:
            if blocker.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
            else:
                connection.exec_driver_sql("LOCK TABLE counters, decisions IN ACCESS EXCLUSIVE MODE")
            (drawn,) = await decide(client, "audited", "1")
            assert (drawn["verdict"], drawn["reason"]) == ("review", "audit_store_unavailable")
            await asyncio.to_thread(wait_for, lambda: not loop.store.up, 20, "notice of it")
            rest = await decide(client, "plain", *map(str, range(10, 20)))
            assert {one["reason"] for one in rest} == {"uncalibrated"}
            label = await client.post("/feedback", json={"id": drawn["id"], "label": "sales"})
            assert (label.status_code, label.json()["type"]) == (503, "urn:demur:problem:store_unavailable")
            assert "Retry-After" in label.headers
            page = (await client.get("/metrics")).text
            assert "demur_store_up 0.0" in page
            assert 'demur_store_lost_total{reason="full"} 8.0' in page
        blocker.dispose()
        await asyncio.to_thread(wait_for, lambda: loop.store.up and not loop.log.buffered, 20, "recovery")
        shown = (await client.get(f"/decisions/{drawn['id']}")).json()
        assert (shown["reason"], shown["guarantee"]) == ("audit_store_unavailable", None)
        (later,) = await decide(client, "audited", "2")
        assert later["audit"] is True


@pytest.mark.parametrize("limit", [0, 2])
async def test_after_too_many_unaudited_decisions_nothing_is_trusted(rig, tmp_path, limit, monkeypatch):
    from dataclasses import replace

    from demur.server.types import Reason, Verdict

    from . import stub

    answer = stub.answer
    monkeypatch.setattr(
        stub,
        "answer",
        lambda request: replace(answer(request), verdict=Verdict.TRUST, reason=Reason.ABOVE_TRUST_THRESHOLD),
    )
    async with served(rig, f"sqlite:///{tmp_path / 'd.db'}", max_unaudited=limit, store_timeout_s=0.2) as (
        client,
        built,
    ):
        loop = built.app.services.loop
        (before,) = await decide(client, "plain", "0")
        assert before["verdict"] == "trust"
        blocker = sa.create_engine(f"sqlite:///{tmp_path / 'd.db'}")
        with blocker.connect() as connection:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
            await decide(client, "audited", "1")
            await asyncio.to_thread(wait_for, lambda: not loop.store.up, 20, "notice of it")
            start = loop.auditor.unaudited
            verdicts = [(await decide(client, "plain", str(i)))[0]["verdict"] for i in range(4)]
            trusted = max(0, limit - start)
            assert verdicts == ["trust"] * trusted + ["review"] * (4 - trusted)
        blocker.dispose()
        await asyncio.to_thread(wait_for, lambda: loop.store.up and not loop.log.buffered, 20, "recovery")
        assert (await decide(client, "plain", "9"))[0]["verdict"] == "trust"
