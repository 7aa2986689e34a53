"""`POST /feedback`: labels come back, one or many, durable before the answer."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.decision.canonical import canonical_bytes
from demur.server.auth import Caller, labels_only
from demur.server.errors import BadRequest, Conflict, Fault, Invalid, NotFound, TooLarge
from demur.server.loop.loop import Loop
from demur.server.services import Services
from demur.server.store import labels
from demur.server.store.labels import LabelGiven, LabelResult
from demur.server.wires.faults import crowded, faults_of, require_none
from demur.server.wires.feedback_models import LabelIn, LabelsIn
from demur.server.wires.reply import json_reply

IDEMPOTENCY_HEADER = "Idempotency-Key"
_MAX_KEY = 255

_PROBLEMS = {
    "unknown_id": "there is no such decision here; ids are those of answers, and decisions may have been let go of",
    "not_an_option": "the label is not one of the options that were asked about",
    "in_the_future": "the label's time lies in the future",
}


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    @labels_only
    async def feedback(request: Request) -> Response:
        loop = services.require_loop()
        caller: Caller = request.state.caller
        raw = await services.read(request)
        given, single = parse(raw, services.settings.max_feedback)
        key = _idempotency_key(request)
        with services.admission.work():
            await loop.stored(one.decision_id for one in given)
            results = await _give(loop, given, caller, raw, key)
            await loop.labelled()
        if single and (problem := results[0]["problem"]) is not None:
            error = NotFound if problem == "unknown_id" else Invalid
            raise error(_PROBLEMS[problem], problem=problem)
        items = [{name: value for name, value in item.items() if name != "task"} for item in results]
        return json_reply(items[0] if single else {"items": items})

    return [Route("/feedback", feedback, methods=["POST"])]


def parse(raw: Any, limit: int) -> tuple[list[LabelGiven], bool]:
    """The labels of a body, and whether it is a single one. Raises `Invalid` with every fault, `TooLarge`."""
    if not isinstance(raw, dict):
        raise Invalid("body: must be an object", faults=(Fault((), "must be an object", "dict_type"),))
    many = "items" in raw
    if many and isinstance(raw["items"], list) and len(raw["items"]) > limit:
        size = len(raw["items"])
        raise TooLarge(f"{size} labels in one request, the limit is {limit}", limit=limit, size=size)
    require_none(_crowded(raw))
    model = LabelsIn if many else LabelIn
    try:
        body = model.model_validate(raw)
    except ValidationError as error:
        require_none(faults_of(error, model))
        raise
    items = body.items if isinstance(body, LabelsIn) else [body]
    return [LabelGiven(item.id, item.label, item.source, item.at) for item in items], not many


def _crowded(raw: dict[str, Any]) -> Iterator[Fault]:
    yield from crowded((), raw)
    if isinstance(items := raw.get("items"), list):
        for index, item in enumerate(items):
            yield from crowded(("items", index), item)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is not None and not 0 < len(key) <= _MAX_KEY:
        raise BadRequest(f"{IDEMPOTENCY_HEADER} must have 1 to {_MAX_KEY} characters")
    return key


async def _give(
    loop: Loop, given: Sequence[LabelGiven], caller: Caller, raw: Any, key: str | None
) -> list[dict[str, Any]]:
    """Stores the labels, or gives the answer that the same request had before. Raises `Conflict`."""
    now = datetime.now(UTC)
    sent = hashlib.sha256(canonical_bytes(raw)).hexdigest()
    kept_as = None if key is None else loop.store.hash("idempotency", f"{caller.key_id}\0{key}")

    def job(connection: Connection) -> tuple[list[dict[str, Any]] | None, bool]:
        first = None if kept_as is None else labels.first_reply(connection, kept_as)
        if first is not None:
            return (json.loads(first[1]) if first[0] == sent else None), False
        results = [
            _members(result) for result in labels.give(connection, loop.store.options, given, key=caller.name, now=now)
        ]
        if kept_as is not None:
            labels.keep_reply(connection, kept_as, sent, json.dumps(results), now)
        return results, True

    results, fresh = await loop.write(job)
    if results is None:
        raise Conflict(f"this {IDEMPOTENCY_HEADER} was used for other content")
    if fresh:
        for one, result in zip(given, results, strict=True):
            if result["status"] in ("stored", "corrected"):
                loop.count_feedback(result["task"], one.source, bool(result["evidence"]))
    return results


def _members(result: LabelResult) -> dict[str, Any]:
    return {
        "id": result.decision_id,
        "status": result.status,
        "evidence": result.evidence,
        "problem": result.problem,
        "task": result.task,
        "second": result.second,
    }
