"""`POST /decide`: one question about one input or a batch of inputs."""

import asyncio
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.decision.canonical import canonical_text
from demur.decision.question import MAX_OPTIONS, Option, Question
from demur.decision.slices import slice_of
from demur.decision.task import (
    DecisionSpec,
    LengthHandling,
    Mode,
    PolicySpec,
    ReadoutKind,
    ReadoutSpec,
    Task,
    ThoughtSpec,
    Truncation,
)
from demur.decision.wording import is_blank, name_key
from demur.server.auth import Caller
from demur.server.errors import DemurError, Fault, Invalid, NotFound, TooLarge
from demur.server.interruption import Interruption
from demur.server.problems import internal_error, problem_members
from demur.server.services import Services
from demur.server.types import DecideRequest, Decision, PolicyOverride
from demur.server.wires.decide_models import DecideIn
from demur.server.wires.faults import crowded, faults_of, require_none
from demur.server.wires.reply import json_reply

#: Fields that only an inline question has; a registered task's are in its file.
_INLINE = ("options", "readout", "thought", "truncation")

#: Characters of option names in the answers to a batch, each of which repeats them.
MAX_REPEATED = 2**24


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    async def decide(request: Request) -> Response:
        services.admission.check()
        async with services.interruption(request) as work:
            body = parse(await services.read(request), services)
            asked = _requests(body, services, request)
            work.watch(request.receive)
            if body.inputs is None:
                with services.admission.places(1):
                    return json_reply(answer_members(await services.decider.decide(asked[0])))
            with services.admission.places(len(asked)):
                return json_reply({"items": await _decide_all(asked, services, work)})

    return [Route("/decide", decide, methods=["POST"])]


def parse(raw: Any, services: Services) -> DecideIn:
    """The body as a model. Raises `Invalid` with every fault, or `TooLarge` for a batch over its limit."""
    if not isinstance(raw, dict):
        raise Invalid("body: must be an object", faults=(Fault((), "must be an object", "dict_type"),))
    limit = services.settings.max_batch
    if isinstance(raw.get("inputs"), list) and len(raw["inputs"]) > limit:
        size = len(raw["inputs"])
        raise TooLarge(f"{size} inputs in one request, the limit is {limit}", limit=limit, size=size)
    require_none(_crowded(raw))
    faults = list(_rules(raw, services))
    body = None
    try:
        body = DecideIn.model_validate(raw)
    except ValidationError as error:
        faults += faults_of(error, DecideIn)
    require_none(faults)
    assert body is not None  # noqa: S101 - no faults, so there is a model
    size = sum(len(option.name) for option in body.options or ()) * len(body.inputs or ())
    if size > MAX_REPEATED:
        raise TooLarge(
            f"the answers would repeat {size} characters of option names, the limit is {MAX_REPEATED}; send fewer "
            "inputs in one request, or move words into descriptions",
            limit=MAX_REPEATED,
            size=size,
        )
    return body


def _crowded(raw: dict[str, Any]) -> Iterator[Fault]:
    yield from crowded((), raw)
    for name in ("readout", "thought", "policy"):
        yield from crowded((name,), raw.get(name))
    if isinstance(options := raw.get("options"), list):
        for index, option in enumerate(options[:MAX_OPTIONS]):
            yield from crowded(("options", index), option)


def _rules(raw: dict[str, Any], services: Services) -> Iterator[Fault]:
    """What a model cannot say, on the raw body, so that these faults are listed beside those of types."""
    if raw.get("task") is not None:
        if raw.get("question") is not None:
            yield Fault(("question",), "give either task, or question and options", "conflict")
        for name in _INLINE:
            if raw.get(name) is not None:
                yield Fault((name,), "a registered task has its own; leave this out", "conflict")
    elif raw.get("slice") is not None:
        yield Fault(("slice",), "slices are a registered task's; leave this out", "conflict")
    elif raw.get("question") is None:
        yield Fault(("task",), "missing: give task, or question and options", "missing")
    elif raw.get("options") is None:
        yield Fault(("options",), "missing: an inline question needs options", "missing")
    if "input" in raw and raw.get("inputs") is not None:
        yield Fault(("inputs",), "give either input or inputs", "conflict")
    elif "input" in raw and raw["input"] is None:
        yield Fault(("input",), "must not be null", "null")
    elif "input" not in raw and raw.get("inputs") is None:
        yield Fault(("input",), "missing: give input or inputs", "missing")
    if isinstance(raw.get("inputs"), list):
        for index, value in enumerate(raw["inputs"]):
            if value is None:
                yield Fault(("inputs", index), "must not be null", "null")
    if isinstance(raw.get("options"), list):
        yield from _option_rules(raw["options"], services.settings.max_options)
    yield from _number_rules(raw, services)


def _option_rules(options: list[Any], limit: int) -> Iterator[Fault]:
    if len(options) > limit:
        if len(options) <= MAX_OPTIONS:  # beyond it the model says so
            yield Fault(("options",), f"{len(options)} options, the limit is {limit}", "too_long")
        return
    seen: dict[str, int] = {}
    for index, option in enumerate(options):
        name = option.get("name") if isinstance(option, dict) else option
        if isinstance(name, str) and not is_blank(name):
            first = seen.setdefault(name_key(name), index)
            if first != index:
                yield Fault(("options", index), f"the same name as options[{first}]", "duplicate")


def _number_rules(raw: dict[str, Any], services: Services) -> Iterator[Fault]:
    match raw.get("policy"):
        case {"trust_at": int() | float() as trust_at, "defer_below": int() | float() as defer_below}:
            if defer_below > trust_at:
                yield Fault(("policy", "defer_below"), "must not exceed trust_at", "conflict")
    match raw.get("thought"):
        case {"max_tokens": int() as tokens} if tokens > services.settings.max_thought_tokens:
            limit = services.settings.max_thought_tokens
            yield Fault(("thought", "max_tokens"), f"the limit is {limit}", "less_than_equal")


def _requests(body: DecideIn, services: Services, request: Request) -> list[DecideRequest]:
    task = None if body.task is None else find_task(body.task, services)
    spec = _inline_spec(body, services.settings.max_thought_tokens) if task is None else task.spec
    policy = PolicySpec() if task is None else services.policies.of(task)
    shadow = None if task is None else services.shadows.of(task)
    if task is not None and body.explain and not task.explain:
        require_none([Fault(("explain",), "this task does not show its thoughts", "not_allowed")])
    if task is not None and body.slice is not None and task.slice_by is None:
        require_none([Fault(("slice",), "this task has no slices", "not_allowed")])
    if body.mode is not None and body.mode != spec.mode:
        spec = replace(spec, mode=Mode(body.mode))
        # The task's thresholds were chosen for its own mode: nothing else is trusted by them.
        policy = replace(policy, allow_uncalibrated=False)
        shadow = shadow and replace(shadow, policy=replace(shadow.policy, allow_uncalibrated=False))
    override = None if body.policy is None else PolicyOverride(**body.policy.model_dump())
    inputs = [body.input] if body.inputs is None else body.inputs
    caller: Caller = request.state.caller
    salt = services.cache_salt(request)
    first = DecideRequest(
        spec, "", task, policy, override, body.explain, salt, caller.key_id, body.subject, shadow=shadow
    )
    field = None if task is None else task.slice_by
    return [replace(first, input=canonical_text(value), slice=slice_of(value, field, body.slice)) for value in inputs]


def find_task(name: str, services: Services) -> Task:
    """A registered task. Raises `NotFound`, naming those that resemble it."""
    tasks = services.tasks.current
    task = tasks.get(name)
    if task is None:
        raise unknown_task(name, list(tasks))
    return task


def unknown_task(name: str, known: Sequence[str]) -> NotFound:
    """The error for a task that is not registered, naming those that resemble it."""
    near = difflib.get_close_matches(name[:200], known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "GET /tasks lists all"
    return NotFound(f"there is no such task; {hint}", near=near)


def _inline_spec(body: DecideIn, max_thought_tokens: int) -> DecisionSpec:
    assert body.question is not None and body.options is not None  # noqa: S101, PT018 - the rules said so
    question = Question(body.question, tuple(Option(option.name, option.description) for option in body.options))
    spec = DecisionSpec(question)
    if body.readout is not None:
        readout = ReadoutSpec(ReadoutKind(body.readout.kind), LengthHandling(body.readout.length))
        spec = replace(spec, readout=readout)
    thought: dict[str, Any] = {} if body.thought is None else body.thought.model_dump(exclude_none=True)
    thought.setdefault("max_tokens", min(spec.thought.max_tokens, max_thought_tokens))
    spec = replace(spec, thought=ThoughtSpec(**thought))
    if body.truncation is not None:
        spec = replace(spec, truncation=Truncation(body.truncation))
    return spec


async def _decide_all(asked: list[DecideRequest], services: Services, work: Interruption) -> list[dict[str, Any]]:
    """Decides a batch at once. At the deadline, or when the engine fails, what is done is kept."""
    tasks = [asyncio.create_task(_decide_one(request, services)) for request in asked]
    rest: dict[str, Any] = {}
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        cause = work.absorb()
        if cause is None:
            raise
        rest = _problem_item(cause)
    finally:
        for task in tasks:
            task.cancel()
    return [task.result() if task.done() else rest for task in tasks]


async def _decide_one(request: DecideRequest, services: Services) -> dict[str, Any]:
    try:
        return {"status": 200, "answer": answer_members(await services.decider.decide(request))}
    except Exception as error:
        return _problem_item(error if isinstance(error, DemurError) else internal_error(error))


def _problem_item(error: DemurError) -> dict[str, Any]:
    return {"status": error.status, "problem": problem_members(error)}


def answer_members(decision: Decision) -> dict[str, Any]:
    """A decision as the native wire shows it."""
    request = decision.request
    task, usage, timings = request.task, decision.usage, decision.timings
    return {
        "id": decision.id,
        "task": task.name if task else None,
        "task_hash": task.content_hash if task else None,
        "decision": decision.name,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "reason_detail": decision.reason_detail,
        "rule": decision.rule,
        "p_correct": decision.p_correct,
        "score": decision.score,
        "probabilities": dict(zip(request.spec.question.names, decision.probabilities.tolist(), strict=True)),
        "label_mass": decision.label_mass,
        "calibration": None if decision.calibration is None else asdict(decision.calibration),
        "certificate": None if decision.certificate is None else asdict(decision.certificate),
        "model": decision.model,
        "mode": request.spec.mode,
        "readout": decision.readout,
        "readout_note": decision.readout_note,
        "truncated": decision.truncated,
        **({"audit": decision.audit} if task is not None and task.show_audit and decision.audit is not None else {}),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "thought_tokens": usage.thought_tokens,
            "reads": usage.reads,
        },
        "timings": {"total_ms": round(timings.total_ms, 3), "engine_ms": round(timings.engine_ms, 3)},
        "thought": decision.thought if request.explain else None,
        "thought_finish": decision.thought_finish,
    }
