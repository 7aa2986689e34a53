"""What the clients make of what comes back."""

import pickle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import demur.clients as api
from demur.clients import Answer, DemurClientError, Verdict
from demur.clients._answers import read_problem
from demur.server.types import Verdict as ServerVerdict

FAULT = {"path": ["options", 1, "name"], "message": "duplicate", "type": "duplicate_option"}
PROBLEM = {
    "type": "urn:demur:problem:invalid_request",
    "title": "Invalid request",
    "status": 422,
    "detail": "1 fault",
    "faults": [FAULT],
    "limit": 255,
}

_MINIMAL = {"id": "d", "decision": "a", "reason": "r", "probabilities": {"a": 1.0}, "label_mass": 1.0}


def test_an_answer_is_typed_and_frozen(answer):
    got = Answer.model_validate({**answer, "p_correct": 0.9, "verdict": "trust"})
    assert (got.verdict, got.trusted, got.p_correct) == (Verdict.TRUST, True, 0.9)
    assert list(got.probabilities) == ["billing", "delivery"]
    assert got.usage.cached_tokens == 32
    with pytest.raises(ValueError):
        got.verdict = Verdict.DEFER


def test_a_newer_servers_fields_are_kept(answer):
    got = Answer.model_validate({**answer, "shift": {"psi": 0.1}, "usage": {**answer["usage"], "joules": 3}})
    assert got.model_extra == {"shift": {"psi": 0.1}}
    assert got.usage.model_extra == {"joules": 3}


@given(st.text())
def test_no_word_but_trust_is_trusted(word):
    got = Answer.model_validate({**_MINIMAL, "verdict": word})
    assert got.trusted == (word == "trust")
    if word not in {"trust", "review", "defer"}:
        assert (got.verdict, got.unknown_verdict) == (Verdict.DEFER, word)


def test_the_verdicts_are_the_servers():
    assert [verdict.value for verdict in Verdict] == [verdict.value for verdict in ServerVerdict]


STATUSES = [
    (400, api.InvalidRequest),
    (401, api.AuthenticationError),
    (403, api.PermissionDenied),
    (404, api.NotFound),
    (405, api.ProblemError),
    (409, api.Conflict),
    (413, api.TooLarge),
    (415, api.InvalidRequest),
    (422, api.InvalidRequest),
    (500, api.ServerError),
    (504, api.DeadlineExceeded),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
async def test_a_refusal_is_raised_at_once_as_what_it_is(connect, script, time, status, kind):
    server = script(httpx.Response(status, json={**PROBLEM, "status": status}, headers={"X-Request-Id": "r-7"}))
    with pytest.raises(kind) as caught:
        await connect(server)("decide", "x", task="t")
    error = caught.value
    assert type(error) is kind
    assert len(server.requests) == 1
    assert time.pauses == []
    assert (error.status, error.type, error.detail, error.request_id) == (status, "invalid_request", "1 fault", "r-7")
    assert error.faults == (api.Fault(("options", 1, "name"), "duplicate", "duplicate_option"),)
    assert error.problem.extra == {"limit": 255}
    assert "options.1.name: duplicate" in str(error)
    assert pickle.loads(pickle.dumps(error)).problem == error.problem  # noqa: S301


def test_every_error_has_one_root_and_is_exported():
    kinds = [kind for kind in vars(api).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, DemurClientError) for kind in kinds)
    assert {kind for _, kind in STATUSES} <= set(kinds)
    assert issubclass(api.DeadlineExceeded, api.Timeout)
    assert sorted(api.__all__) == api.__all__


def test_the_docstring_draws_the_whole_tree():
    from demur.clients import _errors

    names = {kind.__name__ for kind in vars(api).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert [name for name in names if name not in _errors.__doc__] == []


def _objects(values):
    keys = st.sampled_from(
        ["type", "title", "status", "detail", "faults", "path", "message", "request_id", "error_type"]
    )
    return st.dictionaries(keys | st.text(), values)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | _objects(x)))
def test_any_json_at_all_makes_a_problem(data):
    problem = read_problem(data, 400, title="Bad Request", request_id="r")
    assert problem.status == 400
    str(api.ProblemError(problem))


async def test_a_proxys_page_is_an_error_with_its_status(connect, script):
    server = script(httpx.Response(502, html="<h1>Bad gateway</h1>"))
    with pytest.raises(api.ServerError, match="502 Bad Gateway"):
        await connect(server)("decide", "x", task="t")


async def test_the_error_form_of_the_v1_routes_is_read_too(connect, script):
    body = {"detail": {"error_type": "authentication_error", "message": "the API key is not valid here"}}
    with pytest.raises(api.AuthenticationError) as caught:
        await connect(script(httpx.Response(401, json=body)))("models")
    assert (caught.value.type, caught.value.detail) == ("authentication_error", "the API key is not valid here")


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, html="<h1>Welcome</h1>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"decision": "a", "secret": "quoted"}),
        httpx.Response(200, content=b'{"probabilities": {"a": NaN}}'),
        httpx.Response(204),
        httpx.Response(302, headers={"Location": "http://elsewhere.test"}),
        lambda _: httpx.Response(200, stream=httpx.ByteStream(b"x"), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["html", "list", "fields missing", "nan", "empty", "redirect", "broken encoding"],
)
async def test_an_answer_that_is_none_of_demurs_is_said_so(connect, script, response):
    server = script(response)
    with pytest.raises(api.UnexpectedAnswer) as caught:
        await connect(server)("decide", "x", task="t")
    assert "quoted" not in str(caught.value)
    assert len(server.requests) == 1


async def test_the_other_routes_are_read(connect, script):
    tasks = {"tasks": [{"name": "intent", "options": ["a", "b"], "readout": "letter"}]}
    whole = {**tasks["tasks"][0], "options": [{"name": "a", "description": "the first"}, {"name": "b"}]}
    server = script(
        httpx.Response(200, json=tasks),
        httpx.Response(200, json=whole),
        httpx.Response(200, json={"object": "list", "data": [{"id": "jev-latest"}]}),
        httpx.Response(200, json={"version": "0.1.0", "model": "demo"}),
    )
    face = connect(server)
    (listed,) = await face("tasks")
    shown = await face("task", "intent")
    assert [option.name for option in listed.options] == [option.name for option in shown.options] == ["a", "b"]
    assert [option.description for option in shown.options] == ["the first", None]
    assert listed.model_extra == {"readout": "letter"}
    assert [model.id for model in await face("models")] == ["jev-latest"]
    assert (await face("version")).version == "0.1.0"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (httpx.Response(200, text="ok"), True),
        (httpx.Response(503), False),
        (httpx.ConnectError("refused"), False),
        (httpx.ReadTimeout("late"), False),
    ],
)
async def test_probes_ask_once_and_take_no_answer_for_no(connect, script, time, reply, expected):
    for method in ("ready", "healthy"):
        server = script(reply)
        assert await connect(server)(method) is expected
        assert len(server.requests) == 1
    assert time.pauses == []


async def test_a_probe_of_something_else_is_an_error(connect, script):
    with pytest.raises(api.NotFound):
        await connect(script(httpx.Response(404)))("ready")


async def test_a_batch_answer_gives_an_outcome_per_input(connect, script, answer):
    items = [
        {"status": 200, "answer": answer},
        {"status": 413, "problem": {**PROBLEM, "status": 413, "retry_after": 2}},
    ]
    face = connect(script(httpx.Response(200, json={"items": items})))
    good, bad = await face("decide_batch", ["a", "b"], task="t")
    assert (good.index, good.unwrap().decision) == (0, "billing")
    assert (bad.index, bad.answer, type(bad.error), bad.error.retry_after) == (1, None, api.TooLarge, 2)
    with pytest.raises(api.TooLarge):
        bad.unwrap()


@pytest.mark.parametrize("items", [[], [{"status": 200}], [{"status": 200, "answer": 3}], [3], None])
async def test_a_batch_answer_with_items_amiss_is_no_answer(connect, script, items):
    with pytest.raises(api.UnexpectedAnswer):
        await connect(script(httpx.Response(200, json={"items": items})))("decide_batch", ["a"], task="t")
