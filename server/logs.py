"""JSON logs of our own lines, with request ids and without anything of what callers sent to be decided."""

import json
import logging
import re
import time
import traceback
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

#: Asked every few seconds by machines; logged at level debug.
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

_request_id: ContextVar[str | None] = ContextVar("demur_request_id", default=None)
_traceparent: ContextVar[str | None] = ContextVar("demur_traceparent", default=None)

_log = logging.getLogger("demur.access")


def current_request_id() -> str | None:
    """Id of the request that is being worked on."""
    return _request_id.get()


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Members beyond the message come from `extra={"fields": {...}}`. Of an exception it keeps the type and the places
    it passed, never its message: that may quote an input. Of others' lines it keeps the first: asyncio's further ones
    show the exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if _is_ours(record) else record.getMessage().partition("\n")[0],
        }
        if request_id := _request_id.get():
            line["request_id"] = request_id
        if traceparent := _traceparent.get():
            line["traceparent"] = traceparent
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["exception"] = type(error).__qualname__
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(line, ensure_ascii=False, default=str)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "demur"


def logging_config(level: str) -> dict[str, Any]:
    """A `logging.config.dictConfig` for the process. Uvicorn's access log shows queries: it stays off."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        # What asyncio and others complain about would otherwise show with the whole exception.
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "demur": {"handlers": ["stderr"], "level": level.upper(), "propagate": False},
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }


class RequestLog:
    """Outermost ASGI middleware: gives a request its id, keeps its trace, and logs one line when it ends.

    A caller's `X-Request-Id` is kept where it is up to 128 characters of ASCII letters, digits and `._:/+=@-`;
    a `traceparent` where it is well-formed. Both are sent back.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request and logs it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        traceparent = headers.get("traceparent")
        if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
            traceparent = None
        id_token = _request_id.set(request_id)
        trace_token = _traceparent.set(traceparent)
        status = 500
        start = time.perf_counter()

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                if scope["path"].startswith("/v1/"):
                    out["x-typesafe-request-id"] = request_id
                if traceparent is not None:
                    out["traceparent"] = traceparent
            await send(message)

        try:
            await self._app(scope, receive, send_with_ids)
        finally:
            # The route's pattern and not the path: a path may hold what a caller sent by mistake.
            route = getattr(scope.get("route"), "path", None)
            fields = {
                "method": scope["method"] if route else None,
                "route": route,
                "status": 499 if scope.get("demur.hung_up") else status,
                "ms": round((time.perf_counter() - start) * 1e3, 3),
            }
            level = logging.DEBUG if route in _PROBES else logging.INFO
            _log.log(level, "request", extra={"fields": fields})
            _request_id.reset(id_token)
            _traceparent.reset(trace_token)
