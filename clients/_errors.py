"""Every error the client raises, in one tree.

DemurClientError
├── ConnectionFailed          no answer came: refused, reset, name not resolved
├── UnexpectedAnswer          an answer came that this client cannot read
├── Timeout                   the call's deadline passed
│   └── DeadlineExceeded      504  the server said so (a ProblemError too)
└── ProblemError                   the server refused, and said why
    ├── AuthenticationError   401  no key, or a wrong one
    ├── PermissionDenied      403  this key may not do that
    ├── NotFound              404  task, route, decision
    ├── Conflict              409
    ├── TooLarge              413  body, batch or input over a limit
    ├── InvalidRequest        400, 415, 422; `faults` lists what is wrong and where
    ├── Overloaded            429  the queue is full
    ├── Unavailable           503  starting, draining, or without an engine
    ├── DeadlineExceeded      504
    └── ServerError           any other 5xx

Arguments that cannot make a request (no task and no question, text that is no valid Unicode) raise `TypeError` or
`ValueError` before anything is sent; an input of `decide_many` that JSON cannot say is an `InvalidRequest` of its item
alone. No message holds an input or a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class DemurClientError(Exception):
    """Base of all errors that a call can end in."""


class ConnectionFailed(DemurClientError):
    """No answer came: connection refused or reset, or the server's name did not resolve."""


class UnexpectedAnswer(DemurClientError):
    """An answer came that this client cannot read; most often something else listens at that address."""


class Timeout(DemurClientError):
    """The call's deadline passed, retries included."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request: where (`path` of keys and indices), what, and a stable `type`."""

    path: tuple[str | int, ...]
    message: str
    type: str = "invalid"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document (RFC 9457).

    `type` is stable, without its `urn:demur:problem:`; `extra` holds further members such as a limit and a size.
    """

    status: int
    type: str
    title: str
    detail: str
    faults: tuple[Fault, ...] = ()
    request_id: str | None = None
    retry_after: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class ProblemError(DemurClientError):
    """The server refused. The document it sent is `problem`; its members are attributes too."""

    def __init__(self, problem: Problem) -> None:
        where = "".join(f"; {_dotted(fault.path)}: {fault.message}" for fault in problem.faults)
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}{where}")
        self.problem = problem
        self.status = problem.status
        self.type = problem.type
        self.detail = problem.detail
        self.faults = problem.faults
        self.request_id = problem.request_id
        self.retry_after = problem.retry_after

    def __reduce__(self) -> tuple[type["ProblemError"], tuple[Problem]]:
        # Exceptions pickle their message by default, which is not what `__init__` takes.
        return type(self), (self.problem,)


class AuthenticationError(ProblemError):
    """No key, or one that the server does not know."""


class PermissionDenied(ProblemError):
    """The key may not do that."""


class NotFound(ProblemError):
    """No such task, route or decision; `detail` names near matches of a task."""


class Conflict(ProblemError):
    """The request does not fit the server's present state."""


class TooLarge(ProblemError):
    """Body, batch or input over a limit; the limit and the size are in `problem.extra`."""


class InvalidRequest(ProblemError):
    """The request is malformed or wrong; `faults` lists every fault with its path."""


class Overloaded(ProblemError):
    """The server's queue is full, after all retries."""


class Unavailable(ProblemError):
    """The server is starting, draining or without an engine, after all retries."""


class DeadlineExceeded(ProblemError, Timeout):
    """The server gave up at the deadline that the call set."""


class ServerError(ProblemError):
    """The server failed."""


_BY_STATUS: dict[int, type[ProblemError]] = {
    400: InvalidRequest,
    401: AuthenticationError,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: InvalidRequest,
    422: InvalidRequest,
    429: Overloaded,
    503: Unavailable,
    504: DeadlineExceeded,
}


def error_for(problem: Problem) -> ProblemError:
    """The error of the tree that stands for this problem."""
    default = ServerError if problem.status >= 500 else ProblemError
    return _BY_STATUS.get(problem.status, default)(problem)


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path) or "body"
