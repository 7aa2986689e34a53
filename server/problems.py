"""Turns errors into responses: RFC 9457 problem documents, or the form of the wire that was called."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demur.server.errors import DemurError, InternalError, MethodNotAllowed, NotFound
from demur.server.interruption import HungUp
from demur.server.logs import current_request_id
from demur.server.wires.reply import json_reply

_log = logging.getLogger("demur.server")

#: Renders an error as a wire's callers expect it.
ErrorForm = Callable[[DemurError], Response]

TYPE_PREFIX = "urn:demur:problem:"


def problem_members(error: DemurError) -> dict[str, Any]:
    """The members of an error's problem document."""
    members: dict[str, Any] = {
        **error.extra,
        "type": TYPE_PREFIX + error.type,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if error.faults:
        members["faults"] = [
            {"path": list(fault.path), "message": fault.message, "type": fault.type} for fault in error.faults
        ]
    if error.retry_after is not None:
        members["retry_after"] = error.retry_after
    if request_id := current_request_id():
        members["request_id"] = request_id
    return members


def problem_response(error: DemurError) -> Response:
    """An error as `application/problem+json`."""
    return json_reply(
        problem_members(error), error.status, headers=error_headers(error), media_type="application/problem+json"
    )


def error_headers(error: DemurError) -> dict[str, str]:
    """The headers that come with an error in every form."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return headers


def internal_error(error: Exception) -> InternalError:
    """Logs a fault of ours, without its message, which may quote an input, and gives the error to show."""
    _log.error("internal error", exc_info=error)
    return InternalError("the server failed; its log has the details under this request id")


class ErrorForms:
    """ASGI middleware that answers every exception. `forms` maps paths to forms other than problem documents."""

    def __init__(self, app: ASGIApp, forms: Mapping[str, ErrorForm]) -> None:
        self._app = app
        self._forms = forms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request; no exception leaves but cancellation."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except HungUp:
            scope["demur.hung_up"] = True
        except Exception as error:  # the last stop: whatever it is, the caller gets a document
            known = as_demur_error(error, Request(scope))
            if started:  # too late for a document; ending here closes the connection
                return
            await self._forms.get(scope["path"], problem_response)(known)(scope, receive, send)


def as_demur_error(error: Exception, request: Request) -> DemurError:
    """The error of the tree that stands for an exception."""
    if isinstance(error, DemurError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFound("there is no such route; /docs lists them all")
        if error.status_code == 405:
            return MethodNotAllowed(
                f"{request.method[:20]} is not possible here, see the Allow header", headers=error.headers
            )
    return internal_error(error)
