"""Every error a caller can meet, in one tree.

DemurError
├── BadRequest            400  a header or the query is not readable
│   └── MalformedBody     400  the body is not readable; `extra` says where
├── UnsupportedMediaType  415
├── Unauthorized          401
├── Forbidden             403
├── NotFound              404  route, task or model
├── MethodNotAllowed      405
├── Conflict              409
├── TooLarge              413  body, batch or input over its limit
│   └── InputTooLong      413  input longer than the context
├── Invalid               422  readable but wrong; every fault listed with its path
├── Overloaded            429
├── Unavailable           503  draining, starting
│   ├── EngineUnavailable 503  engine dead or hung
│   └── StoreUnavailable  503  the database does not answer
├── DeadlineExceeded      504
└── InternalError         500
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a body: where (path of keys and indices), what, and a stable `type`."""

    path: tuple[str | int, ...]
    message: str
    type: str = "invalid"


class DemurError(Exception):
    """Base. `detail` says what is wrong and what the caller can do; `extra` are further members of the problem."""

    type: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        detail: str,
        *,
        faults: tuple[Fault, ...] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = faults
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        self.extra = extra


class BadRequest(DemurError):
    type, title, status = "bad_request", "Malformed request", 400


class MalformedBody(BadRequest):
    type, title = "malformed_body", "Malformed body"


class Unauthorized(DemurError):
    type, title, status = "unauthorized", "Authentication required", 401


class Forbidden(DemurError):
    type, title, status = "forbidden", "Not allowed with this key", 403


class NotFound(DemurError):
    type, title, status = "not_found", "Not found", 404


class MethodNotAllowed(DemurError):
    type, title, status = "method_not_allowed", "Method not allowed", 405


class Conflict(DemurError):
    type, title, status = "conflict", "Conflict", 409


class TooLarge(DemurError):
    type, title, status = "too_large", "Over a limit", 413


class InputTooLong(TooLarge):
    type, title = "input_too_long", "Input longer than the context"


class UnsupportedMediaType(DemurError):
    type, title, status = "unsupported_media_type", "Unsupported media type", 415


class Invalid(DemurError):
    type, title, status = "invalid_request", "Invalid request", 422


class Overloaded(DemurError):
    type, title, status = "overloaded", "Queue full", 429


class InternalError(DemurError):
    pass


class Unavailable(DemurError):
    type, title, status = "unavailable", "Not available now", 503


class EngineUnavailable(Unavailable):
    type, title = "engine_unavailable", "Engine not available"


class StoreUnavailable(Unavailable):
    type, title = "store_unavailable", "Store not available"


class DeadlineExceeded(DemurError):
    type, title, status = "deadline_exceeded", "Deadline exceeded", 504
