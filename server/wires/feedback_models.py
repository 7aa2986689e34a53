"""The bodies of `/feedback`, `/review` and `/decisions`."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from demur.server.types import Verdict
from demur.server.wires.decide_models import Out
from demur.server.wires.faults import Strict

Id = Annotated[str, Field(max_length=64, pattern=r"^[^\x00]+$")]
Source = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,31}$")]
#: What is earlier is a mistake, and no time at all once it is converted to UTC.
Aware = Annotated[AwareDatetime, Field(strict=False, ge=datetime(1970, 1, 1, tzinfo=UTC))]


class LabelIn(Strict):
    """What a decision should have been."""

    id: Id = Field(description="The decision's id.")
    label: Annotated[str, Field(max_length=4096)] = Field(description="Name of the right option.")
    source: Source | None = Field(None, description="Who or what found it, such as `reviewer` or `refunds`.")
    at: Aware | None = Field(None, description="When it was found, with a time zone; now if not given.")


class LabelsIn(Strict):
    """Several labels."""

    items: Annotated[list[LabelIn], Field(min_length=1)]


class LabelOut(Out):
    """What became of a label. `evidence`: it counts, since Demur drew the decision for audit.

    `second`: it is the second person's of an audit that two are asked about; the label in force stays as it is.
    """

    id: str
    status: Literal["stored", "unchanged", "corrected", "rejected"]
    evidence: bool
    problem: Literal["unknown_id", "not_an_option", "in_the_future"] | None = None
    second: bool


class LabelsOut(Out):
    """One result for each label, in the order sent."""

    items: list[LabelOut]


class ReviewItemOut(Out):
    """Something to label. An audit is shown blind: without decision, p_correct and reason."""

    id: str
    task: str
    kind: Literal["audit", "review", "defer"]
    at: datetime
    input: str | None = Field(description="null where the task does not set log_inputs")
    options: list[str]
    claimed_by: str | None
    claimed_until: datetime | None
    decision: str | None = None
    p_correct: float | None = None
    reason: str | None = None


class ReviewOut(Out):
    """A page of the queue; `next` goes on, null at the end."""

    items: list[ReviewItemOut]
    next: str | None


class ClaimIn(Strict):
    """What to claim, and for how long."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=100)]
    seconds: Annotated[int, Field(ge=1, le=86_400)] = 600


class ReleaseIn(Strict):
    """What to give back."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=100)]


class ClaimOut(Out):
    """Whether an item is the caller's now."""

    id: str
    claimed: bool
    until: datetime | None = None
    problem: Literal["unknown_id", "claimed_by_another"] | None = None


class ClaimsOut(Out):
    """One result for each id."""

    items: list[ClaimOut]


class ReleaseOut(Out):
    """Whether an item was the caller's, and is free now."""

    id: str
    released: bool
    problem: Literal["unknown_id", "not_claimed"] | None = None


class ReleasesOut(Out):
    """One result for each id."""

    items: list[ReleaseOut]


class GivenLabelOut(Out):
    """A label that was given. `corrects`: seq of the one that it replaces; `second`: another person's, of an audit."""

    seq: int
    label: str
    source: str | None
    key: str | None
    at: datetime
    received_at: datetime
    corrects: int | None
    evidence: bool
    second: bool


class AuditOut(Out):
    """An audit; `open`: a label is still wanted."""

    state: Literal["open", "labelled"]
    due: datetime


class ShadowOut(Out):
    """What a candidate would have answered. `bundle`, `policy`: ids of the candidates, null for the one in force."""

    decision: str
    verdict: Verdict
    reason: str
    p_correct: float | None
    bundle: str | None
    policy: str | None


class DecisionOut(Out):
    """A stored decision. `audit` and second labels are told only where the task shows it, or to keys that may label."""

    id: str
    task: str
    task_hash: str
    at: datetime
    decision: str
    verdict: Verdict
    reason: str
    probabilities: dict[str, float]
    label_mass: float
    p_correct: float | None
    score: float | None
    bundle: str | None
    guarantee: str | None
    slice: str | None
    model: str
    mode: str
    readout: str
    input: str | None
    key: str | None
    shadow: ShadowOut | None
    audit: AuditOut | None = None
    labels: list[GivenLabelOut]
