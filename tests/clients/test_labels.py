"""Labels, reviews and versions of bundles through the clients."""

import itertools
import json
from datetime import UTC, datetime

import httpx
import pytest

from demur.clients import (
    AsyncClient,
    Client,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ReviewItem,
    UnexpectedAnswer,
)

STORED = {"id": "d-1", "status": "stored", "evidence": True, "problem": None}
AT = datetime(2026, 6, 1, 12, tzinfo=UTC)


def given(request):
    """Keeps every label but those of the decision `lost`."""
    items = json.loads(request.content)["items"]
    return httpx.Response(
        200,
        json={
            "items": [
                {"id": item["id"], "status": "rejected", "evidence": False, "problem": "unknown_id"}
                if item["id"] == "lost"
                else {"id": item["id"], "status": "stored", "evidence": False}
                for item in items
            ]
        },
    )


def problem(status, **members):
    return httpx.Response(status, json={"type": "urn:demur:problem:x", "title": "No", "status": status, **members})


async def test_a_label_is_given(connect, script):
    server = script(httpx.Response(200, json=STORED))
    face = connect(server)
    result = await face("feedback", "d-1", "billing", source="reviewer", at=AT)
    assert (result.status, result.accepted, result.evidence) == ("stored", True, True)
    await face("feedback", "d-1", "billing")
    first, second = server.requests
    assert (first.method, first.url.path) == ("POST", "/feedback")
    assert json.loads(first.content) == {
        "id": "d-1", "label": "billing", "source": "reviewer", "at": "2026-06-01T12:00:00+00:00",
    }  # fmt: skip
    assert json.loads(second.content) == {"id": "d-1", "label": "billing"}
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


async def test_a_label_whose_answer_was_lost_is_sent_again_under_the_same_key(connect, script, time):
    server = script(httpx.ReadError("gone"), httpx.Response(503), httpx.Response(200, json=STORED))
    await connect(server)("feedback", "d-1", "billing")
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 1
    assert time.pauses == [1.0, 2.0]
    server = script(httpx.Response(200, json=STORED))
    await connect(server)("feedback", "d-1", "billing", idempotency_key="ticket-7")
    assert server.requests[0].headers["Idempotency-Key"] == "ticket-7"


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (422, InvalidRequest), (409, Conflict), (403, PermissionDenied)]
)
async def test_a_refused_label_is_an_error(connect, script, status, kind):
    with pytest.raises(kind):
        await connect(script(problem(status)))("feedback", "d-1", "billing")


async def test_many_labels_go_in_batches_and_are_answered_one_by_one(connect, script):
    server = script(given)
    labels = [("a", "x"), {"id": "lost", "label": "y", "at": AT}, ("c", "z"), ("d", "x"), ("e", "x")]
    results = await connect(server)("feedback_many", iter(labels), batch_size=2)
    assert [result.id for result in results] == ["a", "lost", "c", "d", "e"]
    assert [result.accepted for result in results] == [True, False, True, True, True]
    assert results[1].problem == "unknown_id"
    bodies = [json.loads(request.content)["items"] for request in server.requests]
    assert [len(body) for body in bodies] == [2, 2, 1]
    assert bodies[0][1] == {"id": "lost", "label": "y", "at": AT.isoformat()}
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 3


async def test_an_import_that_is_run_again_asks_under_the_same_keys(connect, script):
    server = script(given)
    face = connect(server)
    for _ in range(2):
        await face("feedback_many", [("a", "x"), ("b", "x"), ("c", "x")], batch_size=2, idempotency_key="import-7")
    keys = [request.headers["Idempotency-Key"] for request in server.requests]
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


async def test_no_labels_ask_nothing(connect, script):
    server = script(given)
    assert await connect(server)("feedback_many", []) == []
    assert server.requests == []


async def test_a_lost_batch_ends_the_import_with_its_error(connect, script):
    server = script(given, problem(403))
    with pytest.raises(PermissionDenied):
        await connect(server)("feedback_many", [("a", "x"), ("b", "x"), ("c", "x")], batch_size=1)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([{"id": "a", "label": "x", "sauce": "y"}], TypeError),
        ([("a", "x"), {"id": "b", "label": "x", "at": datetime(2026, 6, 1)}], ValueError),  # noqa: DTZ001
        ([("a", "x"), ("b", "\ud800")], ValueError),
    ],
)
async def test_labels_that_make_no_request_send_none(connect, script, labels, error):
    server = script(given)
    with pytest.raises(error):
        await connect(server)("feedback_many", labels, batch_size=1)
    with pytest.raises(ValueError, match="at least 1"):
        await connect(server)("feedback_many", [("a", "x")], batch_size=0)
    assert server.requests == []


async def test_an_answer_for_other_labels_is_none(connect, script):
    server = script(httpx.Response(200, json={"items": [STORED]}))
    with pytest.raises(UnexpectedAnswer):
        await connect(server)("feedback_many", [("a", "x"), ("b", "x")])


async def test_a_stored_decision_is_read(connect, script):
    label = {"seq": 3, "label": "a", "source": None, "key": "ann", "at": AT.isoformat(), "received_at": AT.isoformat(),
             "corrects": 2, "evidence": True, "second": False}  # fmt: skip
    stored = {"id": "d/1", "task": "intent", "at": AT.isoformat(), "decision": "b", "verdict": "trust",
              "reason": "above_trust_threshold", "probabilities": {"a": 0.1, "b": 0.9}, "label_mass": 1.0,
              "p_correct": 0.9, "audit": {"state": "open", "due": AT.isoformat()}, "labels": [label]}  # fmt: skip
    blind = {"id": "d/1", "task": "intent", "kind": "audit", "at": AT.isoformat(), "input": None, "options": ["a", "b"]}
    server = script(httpx.Response(200, json=stored), httpx.Response(200, json=blind), problem(404))
    face = connect(server)
    found = await face("decision", "d/1")
    assert server.requests[0].url.raw_path == b"/decisions/d%2F1"
    assert (found.decision, found.audit.state, found.audit.due) == ("b", "open", AT)
    assert (found.labels[0].label, found.labels[0].corrects, found.labels[0].evidence) == ("a", 2, True)
    waiting = await face("decision", "d/1")
    assert isinstance(waiting, ReviewItem)
    assert (waiting.kind, waiting.options) == ("audit", ("a", "b"))
    with pytest.raises(NotFound):
        await face("decision", "gone")


def pages(sizes):
    """A server whose queue comes in pages of these sizes."""
    numbers = itertools.count()
    ends = list(itertools.accumulate(sizes))

    def serve(request):
        after = request.url.params.get("after")
        page = 0 if after is None else int(after)
        items = [
            {
                "id": f"d{next(numbers)}",
                "task": "t",
                "kind": "audit",
                "at": AT.isoformat(),
                "input": "?",
                "options": ["a"],
            }
            for _ in range(sizes[page])
        ]
        return httpx.Response(200, json={"items": items, "next": str(page + 1) if page + 1 < len(ends) else None})

    return serve


@pytest.mark.parametrize("sizes", [[0], [2], [2, 2, 1], [2, 0, 1]])
async def test_a_queue_is_read_to_its_end(connect, script, sizes):
    server = script(pages(sizes))
    items = await connect(server)("review", "t", "audit", page_size=2)
    assert [item.id for item in items] == [f"d{number}" for number in range(sum(sizes))]
    assert dict(server.requests[0].url.params) == {"task": "t", "kind": "audit", "limit": "2"}
    assert [request.url.params.get("after") for request in server.requests[1:]] == [
        str(n) for n in range(1, len(sizes))
    ]


async def test_pages_are_asked_for_as_they_are_needed(script):
    server = script(pages([2, 2, 2]))
    with Client(transport=httpx.MockTransport(server)) as client:
        queue = client.review(page_size=2)
        assert [next(queue).id, next(queue).id] == ["d0", "d1"]
        assert len(server.requests) == 1
    async with AsyncClient(transport=httpx.MockTransport(server)) as client:
        queue = client.review(page_size=2)
        await anext(queue)
        assert len(server.requests) == 2
        await queue.aclose()


async def test_items_are_claimed_and_given_back(connect, script):
    server = script(
        httpx.Response(200, json={"items": [{"id": "a", "claimed": True, "until": AT.isoformat()},
                                            {"id": "b", "claimed": False, "problem": "claimed_by_another"}]}),
        httpx.Response(200, json={"items": [{"id": "a", "released": True}]}),
    )  # fmt: skip
    face = connect(server)
    mine, others = await face("claim", ["a", "b"], seconds=60)
    assert (mine.claimed, mine.until, others.claimed, others.problem) == (True, AT, False, "claimed_by_another")
    (back,) = await face("release", ["a"])
    assert back.released
    claim, release = server.requests
    assert (claim.url.path, json.loads(claim.content)) == ("/review/claim", {"ids": ["a", "b"], "seconds": 60})
    assert (release.url.path, json.loads(release.content)) == ("/review/release", {"ids": ["a"]})
    with pytest.raises(TypeError, match="not one string"):
        await face("claim", "ab")


async def test_bundles_are_listed_and_an_earlier_one_is_served_again(connect, script):
    one = {"version": 1, "bundle": "b1", "active": False, "adopted_at": AT.isoformat(), "adopted_by": None}
    two = {**one, "version": 2, "bundle": "b2", "active": True, "state": "withdrawn"}
    server = script(
        httpx.Response(200, json={"task": "in/tent", "versions": [one, two]}), httpx.Response(200, json=one)
    )
    face = connect(server)
    first, second = await face("bundles", "in/tent")
    assert (first.active, second.active, second.adopted_at, second.model_extra["state"]) == (
        False,
        True,
        AT,
        "withdrawn",
    )
    assert (await face("rollback", "in/tent", 1)).bundle == "b1"
    assert server.requests[0].url.raw_path == b"/tasks/in%2Ftent/bundles"
    assert server.requests[1].url.raw_path == b"/tasks/in%2Ftent/rollback"
    assert json.loads(server.requests[1].content) == {"version": 1}


@pytest.mark.parametrize("method", ["recertify", "recalibrate"])
async def test_a_renewal_is_asked_for_once(connect, script, time, method):
    """Every attempt is paid for, and whether a lost one counted is not known."""
    server = script(httpx.Response(200, json={"outcome": "certified", "attempt": 2, "version": 3, "n": 900}))
    renewal = await connect(server)(method, "intent", deadline=300)
    assert (renewal.outcome, renewal.attempt, renewal.version, renewal.model_extra) == ("certified", 2, 3, {"n": 900})
    assert (server.requests[0].method, server.requests[0].url.path) == ("POST", f"/tasks/intent/{method}")
    assert server.requests[0].headers["X-Demur-Deadline-Ms"] == "300000"
    lost = script(httpx.ReadError("gone"))
    with pytest.raises(ConnectionFailed):
        await connect(lost)(method, "intent")
    assert (len(lost.requests), time.pauses) == (1, [])
