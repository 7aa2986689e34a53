"""`GET /review` and its claims: what people are asked to label, and who is at it."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.server.auth import Caller, labels_only
from demur.server.errors import BadRequest, Fault, Invalid
from demur.server.services import Services
from demur.server.store import review
from demur.server.store.review import KINDS, Kind, Place, ReviewItem
from demur.server.wires.faults import crowded, faults_of, require_none
from demur.server.wires.feedback_models import ClaimIn, ReleaseIn
from demur.server.wires.reply import json_reply

B = TypeVar("B", bound=BaseModel)

_LIMIT, _MOST = 50, 200
#: Stands for everybody where no keys are configured.
_ANYBODY = "anybody"


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    @labels_only
    async def queue(request: Request) -> Response:
        loop = services.require_loop()
        caller: Caller = request.state.caller
        asked = request.query_params
        task, kind, after, limit = (
            _task(asked.get("task")),
            _kind(asked.get("kind")),
            _place(asked.get("after")),
            _limit(asked.get("limit")),
        )
        items, place = await loop.read(
            lambda connection: review.page(
                connection,
                loop.store.options,
                task=task,
                kind=kind,
                after=after,
                limit=limit,
                person=caller.name,
                now=datetime.now(UTC),
            )
        )
        following = None if place is None else f"{place.kind}.{place.seq}"
        return json_reply({"items": [item_members(item) for item in items], "next": following})

    @labels_only
    async def claim(request: Request) -> Response:
        loop = services.require_loop()
        person = _person(request)
        body = _parse(await services.read(request), ClaimIn)
        now = datetime.now(UTC)
        until = now + timedelta(seconds=body.seconds)
        done = await loop.write(
            lambda connection: review.claim(connection, body.ids, person=person, until=until, now=now)
        )
        items: list[dict[str, Any]] = []
        for one in body.ids:
            if done.get(one):
                items.append({"id": one, "claimed": True, "until": until.isoformat()})
            else:
                problem = "claimed_by_another" if one in done else "unknown_id"
                items.append({"id": one, "claimed": False, "problem": problem})
        return json_reply({"items": items})

    @labels_only
    async def release(request: Request) -> Response:
        loop = services.require_loop()
        person = _person(request)
        body = _parse(await services.read(request), ReleaseIn)
        done = await loop.write(lambda connection: review.release(connection, body.ids, person=person))
        items: list[dict[str, Any]] = []
        for one in body.ids:
            if done.get(one):
                items.append({"id": one, "released": True})
            else:
                items.append({"id": one, "released": False, "problem": "not_claimed" if one in done else "unknown_id"})
        return json_reply({"items": items})

    return [
        Route("/review", queue, methods=["GET"]),
        Route("/review/claim", claim, methods=["POST"]),
        Route("/review/release", release, methods=["POST"]),
    ]


def _person(request: Request) -> str:
    caller: Caller = request.state.caller
    return caller.name or _ANYBODY


def _parse(raw: Any, model: type[B]) -> B:
    if not isinstance(raw, dict):
        raise Invalid("body: must be an object", faults=(Fault((), "must be an object", "dict_type"),))
    require_none(crowded((), raw))
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        require_none(faults_of(error, model))
        raise


def _task(text: str | None) -> str | None:
    if text is not None and "\0" in text:
        raise BadRequest("task must be the name of one")
    return text


def _kind(text: str | None) -> Kind | None:
    found = next((kind for kind in KINDS if kind == text), None)
    if text is not None and found is None:
        raise BadRequest(f"kind must be {' or '.join(KINDS)}")
    return found


def _place(text: str | None) -> Place | None:
    if text is None:
        return None
    kind, _, seq = text.partition(".")
    if kind not in KINDS or not (seq.isascii() and seq.isdecimal() and len(seq) <= 18):
        raise BadRequest("after must be the `next` of a page")
    return Place(kind, int(seq))


def _limit(text: str | None) -> int:
    if text is None:
        return _LIMIT
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= _MOST):
        raise BadRequest(f"limit must be a whole number from 1 to {_MOST}")
    return int(text)


def item_members(item: ReviewItem) -> dict[str, Any]:
    """Something to label, as it is answered; an audit blind."""
    members = asdict(item)
    members["at"] = item.at.isoformat()
    members["claimed_until"] = None if item.claimed_until is None else item.claimed_until.isoformat()
    if item.kind == "audit":
        for blind in ("decision", "p_correct", "reason"):
            del members[blind]
    return members
