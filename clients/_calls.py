"""What is asked: calls built from arguments, without any input or output.

A `Call` is one HTTP request and how to read its answer; `_exchange` sends it and tries again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from demur.clients import _answers
from demur.clients._answers import Item
from demur.clients._models import Answer, ModelInfo, ShadowPolicy, TaskCalibration, TaskInfo, TaskPolicy, Version

T = TypeVar("T")
_SHADOW = "policy/shadow"

#: An input: text, or a JSON value other than null, which the server renders canonically.
JsonInput = str | int | float | bool | Sequence[Any] | Mapping[str, Any]


class Policy(TypedDict, total=False):
    """Thresholds in [0, 1] for one call; they may only tighten the task's."""

    trust_at: float
    defer_below: float
    min_label_mass: float


class NewPolicy(TypedDict, total=False):
    """A task's policy, as in a task file; what is left out is the default.

    kind : if not given, `fixed_thresholds` where a threshold is given, else `certified`.
    cost : `cost[i][j]` of acting on option i when j is right.
    """

    kind: Literal["fixed_thresholds", "certified", "expected_cost", "budget"]
    allow_uncalibrated: bool
    trust_at: float
    defer_below: float
    min_label_mass: float
    scale: Literal["p_correct", "score"]
    cost: Sequence[Sequence[float]]
    review_price: float
    defer_price: float
    to_people: float


class Thought(TypedDict, total=False):
    """Budget and sampling of the thought in reasoned mode, for an inline question."""

    max_tokens: int
    max_ms: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    markers: bool


class Ask(TypedDict, total=False):
    """The keywords of `decide`, `decide_batch` and `decide_many`: either `task`, or `question` and `options`.

    task : name of a registered task.
    question : an inline question.
    options : its 2 to 255 options in order: names, or names mapped to descriptions.
    readout : of an inline question: labels are letters, or the options' own text.
    thought : of an inline question: budget and sampling in reasoned mode.
    slice : the slice of a registered task's traffic, for inputs that do not name their own.
    subject : whom the input is about, so that what is stored of it can be deleted for them.
    truncation : of an inline question: refuse an input that does not fit, or keep its head or its tail.
    mode : decide at once (`direct`) or after a bounded thought (`reasoned`); the task's own mode if not given.
    policy : thresholds that tighten the task's.
    explain : ask for the thought, where there is one.
    deadline : seconds for the request, retries included; the client's `timeout` if not given. What remains of it is
        told to the server at every attempt. `decide_many` gives every one of its requests this long.
    """

    task: str
    question: str
    options: Sequence[str] | Mapping[str, str | None]
    readout: Literal["letter", "text"]
    thought: Thought
    slice: str
    subject: str
    truncation: Literal["refuse", "head", "tail"]
    mode: Literal["direct", "reasoned"]
    policy: Policy
    explain: bool
    deadline: float


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request: what to send and how to read a successful response."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: bytes | None = None
    deadline: float | None = None
    retried: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


def decide(value: JsonInput, ask: Ask) -> Call[Answer]:
    """One input, one answer."""
    return _decide({"input": value}, ask, lambda response: Answer.model_validate(response.json()))


def decide_batch(values: Sequence[JsonInput], ask: Ask) -> Call[list[Item]]:
    """Several inputs in one request, an outcome each."""
    if isinstance(values, str):
        raise TypeError("inputs must be a sequence of inputs, not one string")
    return _decide({"inputs": list(values)}, ask, lambda response: _answers.read_items(response.json(), len(values)))


def tasks() -> Call[list[TaskInfo]]:
    """All registered tasks."""
    return Call("GET", "/tasks", lambda response: [TaskInfo.model_validate(task) for task in response.json()["tasks"]])


def task(name: str) -> Call[TaskInfo]:
    """One registered task."""
    return Call("GET", f"/tasks/{quote(name, safe='')}", lambda response: TaskInfo.model_validate(response.json()))


def calibration(name: str) -> Call[TaskCalibration]:
    """What a task's verdicts rest on."""
    return Call("GET", of_task(name, "calibration"), lambda response: TaskCalibration.model_validate(response.json()))


def diagram(name: str) -> Call[str]:
    """A task's reliability diagram."""
    return Call("GET", f"{of_task(name, 'calibration')}?format=svg", lambda response: response.text)


def policy(name: str) -> Call[TaskPolicy]:
    """The policy in force."""
    return Call("GET", of_task(name, "policy"), lambda response: TaskPolicy.model_validate(response.json()))


def set_policy(name: str, members: NewPolicy, version: int | None) -> Call[TaskPolicy]:
    """A policy in place of the one in force, or of `version` only. Not retried: the first attempt may have counted."""
    _check_members(members)
    body: dict[str, Any] = {**members} if version is None else {**members, "version": version}
    read = TaskPolicy.model_validate_json
    return Call("PUT", of_task(name, "policy"), lambda response: read(response.content), encode(body), retried=False)


def shadow_policy(name: str) -> Call[ShadowPolicy]:
    """The policy that is tried beside the one in force."""
    return Call("GET", of_task(name, _SHADOW), lambda response: ShadowPolicy.model_validate(response.json()))


def set_shadow_policy(name: str, members: NewPolicy) -> Call[ShadowPolicy]:
    """A policy to be tried. Retried like a decision: set twice, it is the same."""
    _check_members(members)
    read = ShadowPolicy.model_validate_json
    return Call("PUT", of_task(name, _SHADOW), lambda response: read(response.content), encode({**members}))


def end_shadow_policy(name: str) -> Call[None]:
    """No policy to be tried any more."""
    return Call("DELETE", of_task(name, _SHADOW), lambda _: None)


def _check_members(members: NewPolicy) -> None:
    unknown = set(members) - NewPolicy.__optional_keys__
    if unknown:
        raise TypeError(f"unknown keywords: {', '.join(sorted(unknown))}")


def models() -> Call[list[ModelInfo]]:
    """The model names that the server answers to."""
    return Call(
        "GET", "/v1/models", lambda response: [ModelInfo.model_validate(model) for model in response.json()["data"]]
    )


def version() -> Call[Version]:
    """What runs there."""
    return Call("GET", "/version", lambda response: Version.model_validate(response.json()))


def probe(path: str) -> Call[bool]:
    """A probe, asked once: its answer now is what the caller wants to know."""
    return Call("GET", path, lambda _: True, retried=False)


def of_task(name: str, part: str) -> str:
    """A route of a task's."""
    return f"/tasks/{quote(name, safe='')}/{part}"


def _decide(body: dict[str, Any], ask: Ask, read: Callable[[httpx.Response], T]) -> Call[T]:
    unknown = set(ask) - Ask.__optional_keys__
    if unknown:
        raise TypeError(f"unknown keywords: {', '.join(sorted(unknown))}")
    if ("task" in ask) == ("question" in ask):
        raise TypeError("give either task, or question and options")
    if ("question" in ask) != ("options" in ask):
        raise TypeError("question and options belong together")
    fields: dict[str, Any] = {**ask}
    deadline = fields.pop("deadline", None)
    if "options" in fields:
        fields["options"] = _options(fields["options"])
    return Call("POST", "/decide", read, encode({**fields, **body}), deadline)


def _options(options: Sequence[str] | Mapping[str, str | None]) -> list[dict[str, str]]:
    if isinstance(options, str):
        raise TypeError("options must be a sequence of names, not one string")
    if isinstance(options, Mapping):
        return [
            {"name": name} if description is None else {"name": name, "description": description}
            for name, description in options.items()
        ]
    return [{"name": name} for name in options]


def encode(body: dict[str, Any]) -> bytes:
    """A body as JSON. Raises ValueError or TypeError, in words that quote nothing."""
    # The errors of json and of the codec quote what they choke on, hence `from None` and words of our own.
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise ValueError("the request holds a lone surrogate, which is no valid Unicode text") from None
    except ValueError:
        raise ValueError("the request holds NaN, an infinity or a circular reference, which JSON cannot say") from None
    except TypeError:
        raise TypeError("the request holds a value that JSON cannot say") from None
