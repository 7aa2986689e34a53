"""`GET /decisions/{id}`: a stored decision with the labels that were given, or blind to whoever is to label it."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demur.server.auth import Caller, Role
from demur.server.errors import NotFound
from demur.server.services import Services
from demur.server.store import decisions, review
from demur.server.store.decisions import Found
from demur.server.store.records import LabelRecord
from demur.server.store.review import ReviewItem
from demur.server.wires.reply import json_reply
from demur.server.wires.review import item_members


def routes(services: Services) -> list[Route]:
    """The routes of this wire."""

    async def decision(request: Request) -> Response:
        loop = services.require_loop()
        caller: Caller = request.state.caller
        wanted = request.path_params["id"]
        if "\0" in wanted:  # which PostgreSQL would not be asked
            raise NotFound("there is no such decision here")
        await loop.stored([wanted])

        def look(connection: Connection) -> ReviewItem | Found | None:
            # Whoever is to label an audit may not know what was decided, nor what another person said.
            if caller.role is Role.FEEDBACK:
                blind = review.open_audit(connection, loop.store.options, wanted, person=caller.name)
                if blind is not None:
                    return blind
            return decisions.find(connection, loop.store.options, wanted)

        found = await loop.read(look)
        if isinstance(found, ReviewItem):
            return json_reply(item_members(found))
        # A decision that another key asked for is none of this one's business.
        if found is None or not (caller.may_label or found.decision.key == caller.key_id):
            raise NotFound("there is no such decision here; another process's is stored within a second")
        task = services.tasks.current.get(found.decision.task)
        return json_reply(_members(found, told=caller.may_label or (task is not None and task.show_audit)))

    return [Route("/decisions/{id}", decision, methods=["GET"])]


def _members(found: Found, *, told: bool) -> dict[str, Any]:
    one, audit = found.decision, found.audit
    members: dict[str, Any] = {
        "id": one.id,
        "task": one.task,
        "task_hash": one.task_hash,
        "at": one.at.isoformat(),
        "decision": one.decision,
        "verdict": one.verdict,
        "reason": one.reason,
        "probabilities": dict(zip(one.options, one.probabilities.tolist(), strict=True)),
        "label_mass": one.label_mass,
        "p_correct": one.p_correct,
        "score": one.score,
        "bundle": one.bundle,
        "guarantee": one.guarantee,
        "slice": one.slice,
        "model": one.model,
        "mode": one.mode,
        "readout": one.readout,
        "input": one.input,
        "key": one.key,
        "shadow": None if one.shadow is None else asdict(one.shadow),
        # A second person's label would give away that the decision was drawn.
        "labels": [_label(label, told=told) for label in found.labels if told or not label.second],
    }
    if told and audit is not None:
        members["audit"] = {"state": "open" if audit.open else "labelled", "due": audit.due.isoformat()}
    return members


def _label(label: LabelRecord, *, told: bool) -> dict[str, Any]:
    return {
        "seq": label.seq,
        "label": label.label,
        "source": label.source,
        "key": label.key,
        "at": label.at.isoformat(),
        "received_at": label.received_at.isoformat(),
        "corrects": label.corrects,
        "evidence": told and label.evidence,
        "second": label.second,
    }
