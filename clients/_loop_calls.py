"""What is asked about labels, reviews and versions of bundles: calls built from arguments."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict, TypeVar
from urllib.parse import quote, urlencode

import httpx

from demur.clients._calls import Call, encode, of_task
from demur.clients._loop_models import (
    BundleVersion,
    Claim,
    LabelResult,
    Release,
    Renewal,
    ReviewItem,
    StoredDecision,
)
from demur.clients._models import AnswerModel

M = TypeVar("M", bound=AnswerModel)

Kind = Literal["audit", "review", "defer"]

#: The same content under the same key is answered as it was the first time.
IDEMPOTENCY_HEADER = "Idempotency-Key"


class Label(TypedDict):
    """What a decision should have been.

    id : of the decision.
    label : name of the right option.
    source : who or what found it, such as `reviewer` or `refunds`.
    at : when it was found, with a time zone; now if not given.
    """

    id: str
    label: str
    source: NotRequired[str | None]
    at: NotRequired[datetime | None]


@dataclass(frozen=True, slots=True)
class Page:
    """Items to label, and where the next page begins; None: this was the last."""

    items: list[ReviewItem]
    following: str | None


def feedback(label: Label, idempotency_key: str | None) -> Call[LabelResult]:
    """One label. Tried again like a decision: given twice, it is kept once."""
    body = encode(_members(label))
    return Call("POST", "/feedback", _reader(LabelResult), body, headers=_idempotent(idempotency_key))


def feedback_batches(
    labels: Iterable[Label | tuple[str, str]], size: int, idempotency_key: str | None
) -> Iterator[Call[list[LabelResult]]]:
    """Labels in batches, each a request of its own. Raises ValueError for a size below 1."""
    if size < 1:
        raise ValueError("batch_size must be at least 1")
    members = [_members(label if isinstance(label, dict) else Label(id=label[0], label=label[1])) for label in labels]
    chunks = [members[start : start + size] for start in range(0, len(members), size)]
    keys = [None if idempotency_key is None else f"{idempotency_key}.{number}" for number in range(len(chunks))]
    bodies = [encode({"items": chunk}) for chunk in chunks]  # all of them before the first is sent
    return (
        Call("POST", "/feedback", _item_reader(LabelResult, len(chunk)), body, headers=_idempotent(key))
        for chunk, key, body in zip(chunks, keys, bodies, strict=True)
    )


def decision(name: str) -> Call[StoredDecision | ReviewItem]:
    """A decision as it is kept, or as the queue shows it."""

    def read(response: httpx.Response) -> StoredDecision | ReviewItem:
        data = response.json()
        blind = isinstance(data, dict) and "kind" in data
        return ReviewItem.model_validate(data) if blind else StoredDecision.model_validate(data)

    return Call("GET", f"/decisions/{quote(name, safe='')}", read)


def review(task: str | None, kind: Kind | None, after: str | None, limit: int) -> Call[Page]:
    """A page of what is to be labelled, from the cursor on."""
    asked = {"task": task, "kind": kind, "after": after, "limit": limit}
    query = urlencode({name: value for name, value in asked.items() if value is not None})

    def read(response: httpx.Response) -> Page:
        data = response.json()
        following = data["next"]
        if following is not None and not isinstance(following, str):
            raise ValueError("the cursor is no string")
        return Page([ReviewItem.model_validate(item) for item in data["items"]], following)

    return Call("GET", f"/review?{query}", read)


def claim(ids: Sequence[str], seconds: int) -> Call[list[Claim]]:
    """Items for the caller alone, for so long."""
    body = encode({"ids": _several(ids), "seconds": seconds})
    return Call("POST", "/review/claim", _item_reader(Claim, len(ids)), body)


def release(ids: Sequence[str]) -> Call[list[Release]]:
    """Items back to everybody."""
    return Call("POST", "/review/release", _item_reader(Release, len(ids)), encode({"ids": _several(ids)}))


def bundles(name: str) -> Call[list[BundleVersion]]:
    """The versions of a task's bundle."""

    def read(response: httpx.Response) -> list[BundleVersion]:
        return [BundleVersion.model_validate(version) for version in response.json()["versions"]]

    return Call("GET", of_task(name, "bundles"), read)


def renew(name: str, how: Literal["recertify", "recalibrate"], deadline: float | None) -> Call[Renewal]:
    """An attempt at a new guarantee. Not retried: every attempt is counted and paid for."""
    return Call("POST", of_task(name, how), _reader(Renewal), encode({}), deadline, retried=False)


def rollback(name: str, version: int) -> Call[BundleVersion]:
    """An earlier version in place of the one in force. Not retried: the first attempt may have counted."""
    body = encode({"version": version})
    return Call("POST", of_task(name, "rollback"), _reader(BundleVersion), body, retried=False)


def _reader(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: model.model_validate(response.json())


def _item_reader(model: type[M], expected: int) -> Callable[[httpx.Response], list[M]]:
    def read(response: httpx.Response) -> list[M]:
        items = [model.model_validate(item) for item in response.json()["items"]]
        if len(items) != expected:
            raise ValueError("the answer does not hold one item per id")
        return items

    return read


def _members(label: Label) -> dict[str, Any]:
    unknown = set(label) - Label.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown members of a label: {', '.join(sorted(map(str, unknown)))}")
    members: Mapping[str, Any] = {name: value for name, value in label.items() if value is not None}
    at = members.get("at")
    if at is None:
        return dict(members)
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise ValueError("a label's time must be a datetime with a time zone")
    return {**members, "at": at.isoformat()}


def _several(ids: Sequence[str]) -> list[str]:
    if isinstance(ids, str):
        raise TypeError("ids must be a sequence of ids, not one string")
    return list(ids)


def _idempotent(key: str | None) -> Mapping[str, str]:
    # Without a key of the caller's, one for this call: an attempt whose answer was lost is not counted twice.
    return {IDEMPOTENCY_HEADER: key or uuid.uuid4().hex}
