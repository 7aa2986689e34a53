"""`GET /tasks` and `GET /tasks/{name}`: the registered tasks."""

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.decision.task import Task
from demur.server.services import Services
from demur.server.wires.decide import unknown_task
from demur.server.wires.reply import json_reply


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    async def tasks(_: Request) -> Response:
        return json_reply({"tasks": [_summary(task) for task in services.tasks.current.values()]})

    async def task(request: Request) -> Response:
        known = services.tasks.current
        name = request.path_params["name"]
        if name not in known:
            raise unknown_task(name, list(known))
        return json_reply(_whole(known[name]))

    return [Route("/tasks", tasks, methods=["GET"]), Route("/tasks/{name:path}", task, methods=["GET"])]


def _summary(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "description": task.description,
        "content_hash": task.content_hash,
        "question": task.spec.question.text,
        "options": list(task.spec.question.names),
        "mode": task.spec.mode,
        "readout": task.spec.readout.kind,
    }


def _whole(task: Task) -> dict[str, Any]:
    spec = task.spec
    return {
        **_summary(task),
        "options": [asdict(option) for option in spec.question.options],
        "readout": asdict(spec.readout),
        "thought": asdict(spec.thought),
        "layout": asdict(spec.layout),
        "truncation": spec.truncation,
        "max_input_tokens": spec.max_input_tokens,
        "policy": asdict(task.policy),
        "examples": list(task.examples),
        "explain": task.explain,
        "log_inputs": task.log_inputs,
        "audit": asdict(task.audit),
        "show_audit": task.show_audit,
        "double_label": task.double_label,
        "slice_by": task.slice_by,
    }
