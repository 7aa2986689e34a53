"""`/tasks/{name}/policy` and `/tasks/{name}/calibration`: what a task's verdicts rest on, and when it is trusted."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.decision.policy import policy_faults
from demur.decision.task import PolicyKind, PolicySpec, Scale, Task
from demur.server.auth import Caller, admin_only
from demur.server.bundles import ServedBundle
from demur.server.errors import BadRequest, Fault, Invalid, NotFound
from demur.server.guarantee import Guarantee, states
from demur.server.live_policies import PolicyVersion, policy_members
from demur.server.policy import carried
from demur.server.services import Services
from demur.server.types import Standing
from demur.server.wires.calibration_models import TaskPolicyIn
from demur.server.wires.decide import find_task
from demur.server.wires.faults import crowded, faults_of, require_none
from demur.server.wires.reply import json_reply

SVG = "image/svg+xml"
DIAGRAM = "reliability.svg"


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    async def calibration(request: Request) -> Response:
        task = find_task(request.path_params["name"], services)
        served = services.tasks.bundles.get(task.name)
        if _wants_diagram(request):
            diagram = None if served is None else served.calibrated.bundle.files.get(DIAGRAM)
            if diagram is None:
                raise NotFound("there is no diagram: the task has no bundle, or its bundle holds none")
            # A bundle is data, so its diagram may not run anything.
            return Response(diagram, media_type=SVG, headers={"Content-Security-Policy": "default-src 'none'; sandbox"})
        return json_reply(_calibration(task, served, services))

    async def policy(request: Request) -> Response:
        if request.method == "PUT":
            return await change(request)
        return _policy(find_task(request.path_params["name"], services), services)

    @admin_only
    async def change(request: Request) -> Response:
        task = find_task(request.path_params["name"], services)
        expected = _if_match(request)
        body = parse(await services.read(request), task)
        if body.version is not None:
            if expected is not None and expected != body.version:
                fault = Fault(("version",), "is not the version of If-Match", "conflict")
                raise Invalid("version: is not the version of If-Match", faults=(fault,))
            expected = body.version
        caller: Caller = request.state.caller
        await services.policies.replace(task, policy_of(body), by=caller.key_id, expected=expected)
        return _policy(task, services)

    return [
        Route("/tasks/{name}/calibration", calibration, methods=["GET"]),
        Route("/tasks/{name}/policy", policy, methods=["GET", "PUT"]),
    ]


def parse(raw: Any, task: Task) -> TaskPolicyIn:
    """The body as a model. Raises `Invalid` with every fault."""
    if not isinstance(raw, dict):
        raise Invalid("body: must be an object", faults=(Fault((), "must be an object", "dict_type"),))
    require_none(crowded((), raw))
    try:
        body = TaskPolicyIn.model_validate(raw)
    except ValidationError as error:
        require_none(faults_of(error, TaskPolicyIn))
        raise
    require_none(_rules(body, task))
    return body


def policy_of(body: TaskPolicyIn) -> PolicySpec:
    """The policy that a body says."""
    said = body.model_dump(exclude={"version", "kind", "scale", "cost"})
    return PolicySpec(
        **said,
        kind=None if body.kind is None else PolicyKind(body.kind),
        scale=Scale(body.scale),
        cost=None if body.cost is None else tuple(tuple(row) for row in body.cost),
    )


def _rules(body: TaskPolicyIn, task: Task) -> Iterator[Fault]:
    for member, message in policy_faults(policy_of(body), len(task.spec.question.options)):
        yield Fault((member,), message, "conflict")


def _if_match(request: Request) -> int | None:
    header = request.headers.get("If-Match")
    if header is None or header.strip() == "*":
        return None
    text = header.strip().strip('"')
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise BadRequest('If-Match must be a version of the policy, such as "3"')
    return int(text)


def _wants_diagram(request: Request) -> bool:
    chosen = request.query_params.get("format")
    if chosen not in {None, "json", "svg"}:
        raise BadRequest("format must be json or svg")
    if chosen is not None:
        return chosen == "svg"
    accepted = [part.split(";")[0].strip() for part in request.headers.get("Accept", "").split(",")]
    return SVG in accepted and "application/json" not in accepted


def _calibration(task: Task, served: ServedBundle | None, services: Services) -> dict[str, Any]:
    if served is None:
        return {
            "task": task.name,
            "bundle": None,
            "created_at": None,
            "mismatches": [],
            "calibration": None,
            "valid": False,
            "states": {},
            "certificate": None,
            "report": None,
        }
    bundle, guarantee = served.calibrated.bundle, None if served.mismatches else served.calibrated.guarantee
    known = {} if guarantee is None else states(guarantee, services.metrics.standing, datetime.now(UTC))
    return {
        "task": task.name,
        "bundle": bundle.id,
        "created_at": bundle.created_at.isoformat(),
        "mismatches": list(served.mismatches),
        "calibration": asdict(served.calibrated.info),
        "valid": "valid" in known.values(),
        "states": known,
        "certificate": bundle.document("certificate.json"),
        "report": bundle.document("report.json"),
    }


def _policy(task: Task, services: Services) -> Response:
    version = services.policies.current(task)
    served = services.tasks.bundles.get(task.name)
    calibrated = None if served is None or served.mismatches else served.calibrated
    guarantee = None if calibrated is None else calibrated.guarantee
    slices = {} if guarantee is None else guarantee.slices
    body = {
        "task": task.name,
        **_version(version),
        **_certified(version.policy, guarantee, served, services),
        "slices": {value: _certified(version.policy, one, served, services) for value, one in slices.items()},
        "history": [_version(one) for one in services.policies.history(task)],
    }
    return json_reply(body, headers={"ETag": f'"{version.version}"'})


def _certified(
    policy: PolicySpec, guarantee: Guarantee | None, served: ServedBundle | None, services: Services
) -> dict[str, Any]:
    if guarantee is None or served is None:
        return {"certificate": None, "certified_thresholds": []}
    stands = services.metrics.standing(guarantee.key) is Standing.VALID
    certificate = carried(policy, guarantee, served.readout, datetime.now(UTC)) if stands else None
    return {
        "certificate": None if certificate is None else asdict(certificate),
        "certified_thresholds": [] if guarantee.trusted is None else list(guarantee.trusted.thresholds),
    }


def _version(version: PolicyVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "policy": policy_members(version.policy),
        "changed_at": None if version.changed_at is None else version.changed_at.isoformat(),
        "changed_by": version.changed_by,
    }
