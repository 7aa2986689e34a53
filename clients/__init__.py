"""The Python client: `Client` blocks, `AsyncClient` awaits; both need only httpx and pydantic.

>>> with Client() as client:  # doctest: +SKIP
...     answer = client.decide("I was charged twice", task="intent")
...     answer.decision if answer.trusted else ask_a_person(answer)
"""

from demur.clients._answers import Item
from demur.clients._async import AsyncClient
from demur.clients._calls import Ask, JsonInput, NewPolicy, Policy, Thought
from demur.clients._errors import (
    AuthenticationError,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    DemurClientError,
    Fault,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    Problem,
    ProblemError,
    ServerError,
    Timeout,
    TooLarge,
    Unavailable,
    UnexpectedAnswer,
)
from demur.clients._loop_calls import Kind, Label
from demur.clients._loop_models import (
    Audit,
    BundleVersion,
    Claim,
    GivenLabel,
    LabelResult,
    Release,
    Renewal,
    ReviewItem,
    StoredDecision,
)
from demur.clients._models import (
    Answer,
    Calibration,
    Certificate,
    ModelInfo,
    OptionInfo,
    PolicyVersion,
    TaskCalibration,
    TaskInfo,
    TaskPolicy,
    Timings,
    Usage,
    Verdict,
    Version,
)
from demur.clients._retry import RetryPolicy
from demur.clients._sync import Client

__all__ = [
    "Answer",
    "Ask",
    "AsyncClient",
    "Audit",
    "AuthenticationError",
    "BundleVersion",
    "Calibration",
    "Certificate",
    "Claim",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DemurClientError",
    "Fault",
    "GivenLabel",
    "InvalidRequest",
    "Item",
    "JsonInput",
    "Kind",
    "Label",
    "LabelResult",
    "ModelInfo",
    "NewPolicy",
    "NotFound",
    "OptionInfo",
    "Overloaded",
    "PermissionDenied",
    "Policy",
    "PolicyVersion",
    "Problem",
    "ProblemError",
    "Release",
    "Renewal",
    "RetryPolicy",
    "ReviewItem",
    "ServerError",
    "StoredDecision",
    "TaskCalibration",
    "TaskInfo",
    "TaskPolicy",
    "Thought",
    "Timeout",
    "Timings",
    "TooLarge",
    "Unavailable",
    "UnexpectedAnswer",
    "Usage",
    "Verdict",
    "Version",
]
