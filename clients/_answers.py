"""What comes back: problem documents and batches, read from decoded JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demur.clients._errors import DemurClientError, Fault, Problem, error_for
from demur.clients._models import Answer

_TYPE_PREFIX = "urn:demur:problem:"


@dataclass(frozen=True, slots=True)
class Item:
    """The outcome of one input of a batch: an answer or an error, and the input's position."""

    index: int
    answer: Answer | None = None
    error: DemurClientError | None = None

    def unwrap(self) -> Answer:
        """The answer; raises the error where there is none."""
        if self.answer is None:
            raise self.error or DemurClientError(f"item {self.index} holds neither an answer nor an error")
        return self.answer


def read_items(data: Any, expected: int) -> list[Item]:
    """The items of a batch answer, one per input and in order; ValueError where they are not."""
    rows = data["items"]
    if len(rows) != expected:
        raise ValueError("the batch answer does not hold one item per input")
    return [_read_item(index, row) for index, row in enumerate(rows)]


def _read_item(index: int, row: Mapping[str, Any]) -> Item:
    if row.get("answer") is not None:
        return Item(index, answer=Answer.model_validate(row["answer"]))
    return Item(index, error=error_for(read_problem(row["problem"], int(row["status"]))))


def read_problem(
    data: Any, status: int, *, title: str = "", request_id: str | None = None, retry_after: float | None = None
) -> Problem:
    """A problem from what came with an error status.

    That may be anything, a proxy's HTML page included, so that what is missing or odd is passed over: the status
    alone makes a usable error.
    """
    members = dict(data) if isinstance(data, dict) else {}
    if isinstance(members.get("detail"), dict):  # the form of the /v1 routes
        detail = members.pop("detail")
        members |= {"type": detail.get("error_type", "about:blank"), "detail": detail.get("message", "")}
    members.pop("status", None)
    faults = members.pop("faults", None)
    pause = members.pop("retry_after", None)
    return Problem(
        status=status,
        type=str(members.pop("type", "about:blank")).removeprefix(_TYPE_PREFIX),
        title=str(members.pop("title", title)),
        detail=str(members.pop("detail", "")),
        faults=tuple(_read_faults(faults)),
        request_id=str(members.pop("request_id", None) or "") or request_id,
        retry_after=float(pause) if retry_after is None and isinstance(pause, int | float) else retry_after,
        extra=members,
    )


def _read_faults(faults: Any) -> list[Fault]:
    rows = [row for row in faults if isinstance(row, dict)] if isinstance(faults, list) else []
    return [
        Fault(_read_path(row.get("path")), str(row.get("message", "")), str(row.get("type", "invalid"))) for row in rows
    ]


def _read_path(path: Any) -> tuple[str | int, ...]:
    if isinstance(path, str):
        return (path,)
    return tuple(part for part in path if isinstance(part, str | int)) if isinstance(path, list) else ()
