"""`/tasks/{name}/policy/shadow`: a candidate policy that judges beside the one in force, without effect."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.server.auth import Caller, admin_only
from demur.server.errors import Fault, Invalid, NotFound
from demur.server.live_policies import policy_members
from demur.server.services import Services
from demur.server.wires.decide import find_task
from demur.server.wires.policies import parse, policy_of
from demur.server.wires.reply import json_reply


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    async def shadow(request: Request) -> Response:
        if request.method in {"PUT", "DELETE"}:
            return await change(request)
        return _shown(request, services)

    @admin_only
    async def change(request: Request) -> Response:
        task = find_task(request.path_params["name"], services)
        caller: Caller = request.state.caller
        if request.method == "DELETE":
            await services.shadows.set(task, None, by=caller.key_id)
            return Response(status_code=204)
        body = parse(await services.read(request), task)
        if body.version is not None:
            fault = Fault(("version",), "a shadow policy has no versions", "not_allowed")
            raise Invalid("version: a shadow policy has no versions", faults=(fault,))
        await services.shadows.set(task, policy_of(body), by=caller.key_id)
        return _shown(request, services)

    return [Route("/tasks/{name}/policy/shadow", shadow, methods=["GET", "PUT", "DELETE"])]


def _shown(request: Request, services: Services) -> Response:
    task = find_task(request.path_params["name"], services)
    found = services.shadows.current(task)
    if found is None:
        raise NotFound("the task has no shadow policy; set one with PUT")
    return json_reply(
        {
            "task": task.name,
            "id": found.shadow.id,
            "policy": policy_members(found.shadow.policy),
            "set_at": found.set_at.isoformat(),
            "set_by": found.set_by,
        }
    )
