import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jevcompat import validate

from demur.server.errors import EngineUnavailable, Fault, InputTooLong, Invalid
from demur.server.wires.systemone import choice_confidence, score_confidence
from demur.server.wires.systemone_models import ErrorOut, ModelsOut, SystemOneOut, ValidationOut

NOUL = {"type": "noul", "instructions": "Is it spam?"}
CHOICE = {"type": "choice", "instructions": "Team?", "criteria": {"billing": None, "技術": ["bugs"]}}
SCORE = {"type": "score", "criteria": ["calm", {"label": "angry"}, "calm"]}
JSON = {"Content-Type": "application/json"}


def _body(**changes):
    return {
        "model": "jev-latest",
        "state": {"b": 1, "a": "x"},
        "questions": {"n": NOUL, "c": CHOICE, "s": SCORE},
    } | changes


async def test_three_kinds_of_question(plain):
    client, stub = plain
    reply = await client.post("/v1/systemone", json=_body())
    answer = SystemOneOut.model_validate_json(reply.content)
    assert reply.status_code == 200
    assert list(answer.answers) == ["n", "c", "s"]
    assert answer.model == "stub-model"
    noul, choice, score = (request.spec.question for request in stub.asked)
    assert noul.names == ("Yes", "No")
    assert [(option.name, option.description) for option in choice.options] == [("billing", None), ("技術", '["bugs"]')]
    assert [(option.name, option.description) for option in score.options] == [
        ("0", "calm"),
        ("1", '{"label": "angry"}'),
        ("2", "calm"),
    ]
    assert {request.input for request in stub.asked} == {'{"a": "x", "b": 1}'}
    body = reply.json()["answers"]
    assert body["s"]["legend"] == {"0": "calm", "1": {"label": "angry"}, "2": "calm"}
    assert body["s"]["score"] == pytest.approx(sum(int(k) * p for k, p in body["s"]["probabilities"].items()))
    assert body["c"]["x_demur"]["verdict"] == "review"


async def test_a_registered_task(plain):
    client, stub = plain
    asked = {"q": {"type": "task", "task": "route-ticket"}, "n": NOUL}
    reply = await client.post("/v1/systemone", json=_body(questions=asked))
    answer = SystemOneOut.model_validate_json(reply.content).answers["q"]
    assert (answer.type, list(answer.probabilities)) == ("choice", ["billing", "technical", "sales"])
    assert (answer.x_demur.task, reply.json()["answers"]["n"]["x_demur"]["task"]) == ("route-ticket", None)
    assert stub.asked[0].task.name == "route-ticket"
    assert stub.asked[0].spec is stub.asked[0].task.spec
    unknown = await client.post("/v1/systemone", json=_body(questions={"q": {"type": "task", "task": "route"}}))
    assert (unknown.status_code, unknown.json()["detail"]["error_type"]) == (404, "not_found")
    for more in ({"instructions": "Team?"}, {"slice": "web"}):
        refused = await client.post("/v1/systemone", json=_body(questions={"q": {**asked["q"], **more}}))
        (place,) = [fault["loc"] for fault in refused.json()["detail"]]
        assert (refused.status_code, place) == (422, ["body", "questions", "q", "task", *more])


async def test_noul_is_the_probability_of_yes(plain):
    client, stub = plain
    criteria = {"true": "ads", "false": None}
    both = {"type": "noul", "instructions": {"task": "spam?"}, "criteria": criteria}
    reply = await client.post(
        "/v1/systemone", json=_body(questions={"q": both, "r": {"type": "noul", "criteria": {"false": "ham"}}})
    )
    first, second = (request.spec.question for request in stub.asked)
    assert (first.text, first.options[0].description, first.options[1].description) == (
        '{"task": "spam?"}',
        "ads",
        None,
    )
    assert second.options[1].description == "ham"
    from .stub import answer

    assert reply.json()["answers"]["q"]["noul"] == answer(stub.asked[0]).probabilities[0]


async def test_an_answer_does_not_depend_on_its_company_or_name(plain):
    client, _ = plain
    together = (await client.post("/v1/systemone", json=_body())).json()["answers"]
    alone = (await client.post("/v1/systemone", json=_body(questions={"🎯 x": SCORE}))).json()["answers"]
    assert together["s"] == alone["🎯 x"]


@pytest.mark.parametrize("model", ["jev-latest", "stub-model", "other-name"])
async def test_models_that_are_served(plain, model):
    client, _ = plain
    reply = await client.post("/v1/systemone", json=_body(model=model))
    assert (reply.status_code, reply.json()["model"]) == (200, "stub-model")
    listed = ModelsOut.model_validate((await client.get("/v1/models")).json())
    assert model in {entry.name for entry in listed.models} & {entry.id for entry in listed.data}


async def test_a_model_that_is_not_served(plain):
    client, stub = plain
    reply = await client.post("/v1/systemone", json=_body(model="gpt"))
    assert (reply.status_code, ErrorOut.model_validate(reply.json()).detail.error_type) == (404, "not_found")
    assert not stub.asked


@pytest.mark.parametrize("pack", [None, "gzip"])
async def test_unknown_fields_are_ignored(plain, pack):
    client, _ = plain
    body = json.dumps(_body(seed=7, x_trace="t", questions={"n": {**NOUL, "weight": 2}})).encode()
    headers = JSON | ({"Content-Encoding": "gzip"} if pack else {})
    assert (
        await client.post("/v1/systemone", content=gzip.compress(body) if pack else body, headers=headers)
    ).status_code == 200


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ("{", [["body", 0]]),
        ('{"a": 1, "a": 2}', [["body", 13]]),
        ('{"state": "\\ud800"}', None),
        ("[]", [["body"]]),
        ({}, [["body", "model"], ["body", "questions"], ["body", "state"]]),
        (
            _body(state=None, model=1),
            [["body", "model"], *[["body", "state", kind] for kind in ("str", "dict[str,any]", "list[any]")]],
        ),
        (_body(questions={}), [["body", "questions"]]),
        (_body(questions=[NOUL]), [["body", "questions"]]),
        (_body(questions={"": NOUL}), [["body", "questions", "", "[key]"]]),
        (_body(questions={"q": {"instructions": "?"}}), [["body", "questions", "q"]]),
        (_body(questions={"q": {"type": "box"}}), [["body", "questions", "q"]]),
        (_body(questions={"q": {"type": "noul"}}), [["body", "questions", "q", "noul"]]),
        (
            _body(questions={"q": {**NOUL, "criteria": {"yes": "x"}}}),
            [["body", "questions", "q", "noul", "criteria", "yes"]],
        ),
        (
            _body(
                questions={
                    "q": {**CHOICE, "criteria": {"only": None}},
                    "r": {**SCORE, "criteria": {"0": "a", "1": "b"}},
                }
            ),
            [["body", "questions", "q", "choice", "criteria"], ["body", "questions", "r", "score", "criteria"]],
        ),
        (
            _body(questions={"q": {**CHOICE, "criteria": {"a": None, " ": None}}}),
            [["body", "questions", "q", "choice", "criteria", " ", "[key]"]],
        ),
        (
            _body(questions={"q": {**CHOICE, "criteria": {f"o{i}": None for i in range(256)}}}),
            [["body", "questions", "q", "choice", "criteria"]],
        ),
        (_body(questions={"q": {**SCORE, "criteria": ["x"] * 11}}), [["body", "questions", "q", "score", "criteria"]]),
        (_body(questions={f"q{i}": NOUL for i in range(65)}), [["body", "questions"]]),
        (_body(assets={"img": {"type": "image"}}), [["body", "assets"]]),
    ],
)
async def test_every_fault_of_a_body_is_listed(plain, body, places):
    client, stub = plain
    content = body if isinstance(body, str) else json.dumps(body)
    reply = await client.post("/v1/systemone", content=content, headers=JSON)
    detail = ValidationOut.model_validate(reply.json()).detail
    assert reply.status_code == 422
    assert places is None or sorted(([item.loc for item in detail]), key=str) == sorted(places, key=str)
    assert all(item.msg and item.type for item in detail)
    assert not stub.asked


@pytest.mark.parametrize("n", [2, 255])
async def test_choices_from_2_to_255(plain, n):
    client, _ = plain
    criteria = {f"option {i}": None for i in range(n)}
    reply = await client.post("/v1/systemone", json=_body(questions={"q": {"type": "choice", "criteria": criteria}}))
    assert list(reply.json()["answers"]["q"]["probabilities"]) == list(criteria)


async def test_limits_of_the_server(rig):
    async with rig(max_options=3, max_questions=2, max_body_bytes=4096).client() as client:
        four = {"type": "choice", "criteria": dict.fromkeys("abcd")}
        reply = await client.post("/v1/systemone", json=_body(questions={"q": four}))
        assert (reply.status_code, reply.json()["detail"][0]["loc"]) == (
            422,
            ["body", "questions", "q", "choice", "criteria"],
        )
        assert (await client.post("/v1/systemone", json=_body())).status_code == 422
        big = await client.post("/v1/systemone", json=_body(state="x" * 5000))
        assert (big.status_code, big.json()["detail"]["error_type"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (EngineUnavailable("gone"), 503, "overloaded_error"),
        (InputTooLong("long", tokens=2, allowed=1), 413, "input_too_long"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
async def test_errors_have_this_wires_form(plain, error, status, error_type):
    client, stub = plain
    stub.broken = error
    reply = await client.post("/v1/systemone", json=_body())
    assert (reply.status_code, reply.json()["detail"]["error_type"]) == (status, error_type)
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"method": "GET"}, 405),
        ({"method": "POST", "content": "{}", "headers": {"Content-Type": "text/plain"}}, 415),
        ({"method": "POST", "content": "{}", "headers": JSON | {"X-Demur-Deadline-Ms": "x"}}, 400),
    ],
)
async def test_what_is_not_about_the_body(plain, options, status):
    client, _ = plain
    reply = await client.request(url="/v1/systemone", **options)
    assert reply.status_code == status
    ErrorOut.model_validate(reply.json())


@pytest.mark.parametrize(
    ("kind", "path", "place"),
    [
        ("c", ("options", 1), ["body", "questions", "c", "choice", "criteria", "技術"]),
        ("s", ("options", 2, "name"), ["body", "questions", "s", "score", "criteria", 2]),
        ("n", ("options", 0), ["body", "questions", "n", "noul", "criteria", "true"]),
        ("c", ("question",), ["body", "questions", "c", "choice"]),
        ("c", ("input",), ["body", "state"]),
    ],
)
async def test_faults_that_the_decider_finds_lead_back_to_the_body(plain, kind, path, place):
    client, stub = plain
    stub.broken = Invalid("no", faults=(Fault(path, "collides", "label"),))
    question = _body()["questions"][kind]
    reply = await client.post("/v1/systemone", json=_body(questions={kind: question}))
    assert (reply.status_code, reply.json()) == (422, {"detail": [{"loc": place, "msg": "collides", "type": "label"}]})


@pytest.mark.parametrize("header", [None, "Bearer wrong"])
async def test_keys(rig, header):
    async with rig(api_keys="right").client() as client:
        for path in ("/v1/systemone", "/v1/models"):
            reply = await client.post(path, headers={"Authorization": header} if header else {})
            assert (reply.status_code, reply.json()["detail"]["error_type"]) == (401, "authentication_error")
            assert reply.headers["www-authenticate"] == "Bearer"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=255).filter(lambda p: sum(p) > 0))
def test_confidence_follows_the_reference_formulas(weights):
    p = (np.array(weights) / sum(weights)).tolist()
    mode = int(np.argmax(p))
    assert choice_confidence(p) == pytest.approx(validate.choice_confidence(p), abs=1e-12)
    assert score_confidence(p, mode) == pytest.approx(validate.score_confidence(p, mode), abs=1e-12)
    assert 0 <= choice_confidence(p) <= 1
    assert 0 <= score_confidence(p, mode) <= 1
