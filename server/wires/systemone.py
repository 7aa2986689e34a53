"""`POST /v1/systemone` and `GET /v1/models`: TypeSafe's contract."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.decision.canonical import canonical_text
from demur.decision.question import Option, Question
from demur.decision.slices import slice_of
from demur.decision.task import DecisionSpec, Task
from demur.server.auth import Caller
from demur.server.errors import DemurError, Fault, Invalid, MalformedBody, NotFound
from demur.server.problems import error_headers
from demur.server.services import ServedModel, Services
from demur.server.types import DecideRequest, Decision
from demur.server.wires.decide import find_task
from demur.server.wires.faults import require_none
from demur.server.wires.reply import json_reply
from demur.server.wires.systemone_models import Choice, Noul, Registered, Score, SystemOneIn

SYSTEMONE, MODELS = "/v1/systemone", "/v1/models"

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    async def systemone(request: Request) -> Response:
        services.admission.check()
        async with services.interruption(request) as work:
            body = parse(await services.read(request), services)
            salt = services.cache_salt(request)
            caller: Caller = request.state.caller
            asked = {qid: _Asked.of(question, qid, services) for qid, question in body.questions.items()}
            requests = [one.request(body.state, services, salt, caller.key_id) for one in asked.values()]
            work.watch(request.receive)
            with services.admission.places(len(asked)):
                decisions = await _decide_all(requests, list(asked.values()), services)
        return json_reply(_answer(asked, decisions))

    models_body = _models(services.model)

    async def models(_: Request) -> Response:
        return json_reply(models_body)

    return [Route(SYSTEMONE, systemone, methods=["POST"]), Route(MODELS, models, methods=["GET"])]


def error_form(error: DemurError) -> Response:
    """An error as this wire's callers expect it: every fault of the body, broken JSON included, is a 422."""
    headers = error_headers(error)
    if isinstance(error, MalformedBody):
        place = [error.extra["offset"]] if "offset" in error.extra else []
        detail = [{"loc": ["body", *place], "msg": error.detail, "type": "json_invalid"}]
        return json_reply({"detail": detail}, 422, headers=headers)
    if isinstance(error, Invalid):
        faults = error.faults or (Fault((), error.detail),)
        detail = [{"loc": ["body", *fault.path], "msg": fault.message, "type": fault.type} for fault in faults]
        return json_reply({"detail": detail}, 422, headers=headers)
    error_type = _ERROR_TYPES.get(error.status, error.type)
    return json_reply({"detail": {"error_type": error_type, "message": error.detail}}, error.status, headers=headers)


def parse(raw: Any, services: Services) -> SystemOneIn:
    """The body as a model. Raises `Invalid` with every fault, then `NotFound` for a model that is not served."""
    if isinstance(raw, dict):
        require_none(_oversized(raw.get("questions"), services))
    try:
        body = SystemOneIn.model_validate(raw)
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False, include_context=False)
        require_none(Fault(item["loc"], item["msg"], item["type"]) for item in items)
        raise
    if body.model not in services.model.names:
        raise NotFound(f"this model is not served; GET {MODELS} lists those that are")
    return body


def _oversized(questions: Any, services: Services) -> Iterator[Fault]:
    """What is over a limit, so that it is not worth validating further."""
    if not isinstance(questions, dict):
        return
    limit = services.settings.max_questions
    if len(questions) > limit:
        yield Fault(("questions",), f"{len(questions)} questions, the limit is {limit}", "too_long")
        return
    for qid, question in questions.items():
        if isinstance(question, dict) and isinstance(criteria := question.get("criteria"), dict):
            limit = services.settings.max_options
            if len(criteria) > limit:
                path = ("questions", qid, str(question.get("type"))[:20], "criteria")
                yield Fault(path, f"{len(criteria)} criteria, the limit is {limit}", "too_long")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question of the contract, what is asked of the model for it, and how its answer is rendered.

    `path` and `keys` lead from the question's options back to the body, for faults that the decider finds. `task` is
    given where a registered one is asked, and `slice` where the body says it.
    """

    spec: DecisionSpec
    render: Callable[[Decision], dict[str, Any]]
    path: tuple[str | int, ...]
    keys: tuple[str | int, ...]
    task: Task | None = None
    slice: str | None = None

    @classmethod
    def of(cls, asked: Noul | Choice | Score | Registered, qid: str, services: Services) -> "_Asked":
        """Raises `NotFound` for a task that is not registered, `Invalid` for a slice where it has none."""
        if isinstance(asked, Registered):
            task = find_task(asked.task, services)
            if asked.slice is not None and task.slice_by is None:
                require_none([Fault(("questions", qid, asked.type, "slice"), "this task has no slices", "not_allowed")])
            keys = tuple(range(len(task.spec.question.options)))
            return cls(task.spec, _choice, ("questions", qid, asked.type, "task"), keys, task, asked.slice)
        path = ("questions", qid, asked.type, "criteria")
        if isinstance(asked, Noul):
            yes, no = (asked.criteria.true, asked.criteria.false) if asked.criteria else (None, None)
            options: tuple[Option, ...] = (Option("Yes", _text(yes)), Option("No", _text(no)))
            text = _text(asked.instructions) or "Does the input meet the description of Yes, or that of No?"
            return cls(DecisionSpec(Question(text, options)), _noul, path, ("true", "false"))
        if isinstance(asked, Choice):
            options = tuple(Option(name, _text(what)) for name, what in asked.criteria.items())
            text = _text(asked.instructions) or "Which option fits the input best?"
            return cls(DecisionSpec(Question(text, options)), _choice, path, tuple(asked.criteria))
        # Levels are named by number: that keeps the order visible, and two levels may read the same.
        options = tuple(Option(str(level), _text(what)) for level, what in enumerate(asked.criteria))
        text = _text(asked.instructions) or "Which level fits the input best?"
        legend = {str(level): what for level, what in enumerate(asked.criteria)}
        spec = DecisionSpec(Question(text, options))
        return cls(spec, lambda decision: _score(decision, legend), path, tuple(range(len(options))))

    def request(self, state: Any, services: Services, cache_salt: str | None, key: str | None) -> DecideRequest:
        """What the decider is asked about a state."""
        text = canonical_text(state)
        if self.task is None:
            return DecideRequest(self.spec, text, cache_salt=cache_salt, key=key)
        part = slice_of(state, self.task.slice_by, self.slice)
        policy = services.policies.of(self.task)
        shadow = services.shadows.of(self.task)
        return DecideRequest(
            self.spec, text, self.task, policy, cache_salt=cache_salt, key=key, slice=part, shadow=shadow
        )

    def place(self, error: Invalid) -> Invalid:
        """The decider's faults, which speak of `options[i]`, with their paths in the body."""
        faults = []
        for fault in error.faults:
            match fault.path:
                case ("options", int() as index, *_):
                    faults.append(Fault((*self.path, self.keys[index]), fault.message, fault.type))
                case ("input", *rest):
                    faults.append(Fault(("state", *rest), fault.message, fault.type))
                case _:
                    faults.append(Fault(self.path[:-1], fault.message, fault.type))
        return Invalid(error.detail, faults=tuple(faults) or (Fault(self.path[:-1], error.detail),))


async def _decide_all(requests: Sequence[DecideRequest], asked: Sequence[_Asked], services: Services) -> list[Decision]:
    """Decides every question by itself, at once. The first error ends them all; it is the answer."""

    async def decide(request: DecideRequest, one: _Asked) -> Decision:
        try:
            return await services.decider.decide(request)
        except Invalid as error:
            raise one.place(error) from None

    if len(requests) == 1:
        return [await decide(requests[0], asked[0])]
    tasks = [asyncio.create_task(decide(request, one)) for request, one in zip(requests, asked, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _answer(asked: dict[str, _Asked], decisions: Sequence[Decision]) -> dict[str, Any]:
    return {
        "model": decisions[0].model,
        "answers": {
            qid: {**one.render(decision), "x_demur": _extras(decision)}
            for (qid, one), decision in zip(asked.items(), decisions, strict=True)
        },
        "usage": {
            "input_tokens": sum(decision.usage.prompt_tokens for decision in decisions),
            # A read yields one token's probabilities, and that is all that is put out.
            "output_tokens": sum(decision.usage.reads + decision.usage.thought_tokens for decision in decisions),
        },
        "x_demur": {
            "cached_tokens": sum(decision.usage.cached_tokens for decision in decisions),
            "reads": sum(decision.usage.reads for decision in decisions),
        },
    }


def _extras(decision: Decision) -> dict[str, Any]:
    return {
        "id": decision.id,
        "task": None if decision.request.task is None else decision.request.task.name,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "reason_detail": decision.reason_detail,
        "p_correct": decision.p_correct,
        "score": decision.score,
        "calibration": None if decision.calibration is None else asdict(decision.calibration),
        "certificate": None if decision.certificate is None else asdict(decision.certificate),
        "label_mass": decision.label_mass,
        "truncated": decision.truncated,
    }


def _noul(decision: Decision) -> dict[str, Any]:
    return {"type": "noul", "noul": float(decision.probabilities[0])}


def _choice(decision: Decision) -> dict[str, Any]:
    p = decision.probabilities.tolist()
    return {
        "type": "choice",
        "choice": decision.name,
        "probabilities": dict(zip(decision.request.spec.question.names, p, strict=True)),
        "confidence": choice_confidence(p),
    }


def _score(decision: Decision, legend: dict[str, Any]) -> dict[str, Any]:
    p = decision.probabilities.tolist()
    return {
        "type": "score",
        "score": sum(level * chance for level, chance in enumerate(p)),
        "legend": legend,
        "probabilities": dict(zip(legend, p, strict=True)),
        "confidence": score_confidence(p, decision.index),
    }


def choice_confidence(p: Sequence[float]) -> float:
    """How far the top probability stands above chance: 0 for a uniform distribution, 1 for certainty."""
    chance = 1 / len(p)
    return min(1.0, max(0.0, (max(p) - chance) / (1 - chance)))


def score_confidence(p: Sequence[float], mode: int) -> float:
    """1 - mean distance from the mode / mean distance of the levels from their middle, 0 at least."""
    n = len(p)
    spread = sum(chance * abs(level - mode) for level, chance in enumerate(p))
    uniform = sum(abs(level - (n - 1) / 2) for level in range(n)) / n
    return min(1.0, max(0.0, 1 - spread / uniform))


def _text(value: Any) -> str | None:
    return None if value is None else canonical_text(value)


def _models(model: ServedModel) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": name,
                "description": model.description if name == model.name else f"Another name of {model.name}.",
                "release_date": model.release_date,
            }
            for name in model.names
        ],
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": model.created, "owned_by": "demur"} for name in model.names
        ],
    }
