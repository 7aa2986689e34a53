"""What the server answers about labels, reviews and versions of bundles, as frozen models."""

from collections.abc import Mapping
from datetime import datetime

from demur.clients._models import AnswerModel


class LabelResult(AnswerModel):
    """What became of a label: `stored`, `unchanged`, `corrected` or `rejected`; then `problem` says why.

    `evidence`: it counts for risk and calibration, since the server itself had drawn the decision for audit.
    `second`: it is the second person's of an audit that two are asked about, and leaves the label in force as it is.
    """

    id: str
    status: str
    evidence: bool = False
    problem: str | None = None
    second: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the server keeps the label."""
        return self.status in {"stored", "unchanged", "corrected"}


class GivenLabel(AnswerModel):
    """A label as it is kept. `corrects` is the `seq` of the one that it replaces; `second` as in `LabelResult`."""

    seq: int
    label: str
    source: str | None = None
    key: str | None = None
    at: datetime
    received_at: datetime
    corrects: int | None = None
    evidence: bool = False
    second: bool = False


class Audit(AnswerModel):
    """That a decision was drawn for audit: `open` or `labelled`, and until when a label is wanted."""

    state: str
    due: datetime


class Shadow(AnswerModel):
    """What a candidate would have answered. `bundle`, `policy`: ids of the candidates, None for the one in force."""

    decision: str
    verdict: str
    reason: str
    p_correct: float | None = None
    bundle: str | None = None
    policy: str | None = None


class StoredDecision(AnswerModel):
    """A decision as the server keeps it, with the labels that were given. `verdict` is what was answered then."""

    id: str
    task: str
    at: datetime
    decision: str
    verdict: str
    reason: str
    probabilities: Mapping[str, float]
    label_mass: float
    p_correct: float | None = None
    score: float | None = None
    bundle: str | None = None
    input: str | None = None
    audit: Audit | None = None
    shadow: Shadow | None = None
    labels: tuple[GivenLabel, ...] = ()


class ReviewItem(AnswerModel):
    """Something to label; `kind` is `audit`, `review` or `defer`. Of an audit nobody is told what was decided."""

    id: str
    task: str
    kind: str
    at: datetime
    input: str | None = None
    options: tuple[str, ...]
    claimed_by: str | None = None
    claimed_until: datetime | None = None
    decision: str | None = None
    p_correct: float | None = None
    reason: str | None = None


class Claim(AnswerModel):
    """Whether an item is the caller's now, until when, or why not."""

    id: str
    claimed: bool
    until: datetime | None = None
    problem: str | None = None


class Release(AnswerModel):
    """Whether an item was the caller's, and is free now, or why not."""

    id: str
    released: bool
    problem: str | None = None


class BundleVersion(AnswerModel):
    """A bundle that a task is or was served with; what else the server says of it is in `model_extra`."""

    version: int
    bundle: str
    active: bool = False
    adopted_at: datetime | None = None
    adopted_by: str | None = None


class Renewal(AnswerModel):
    """What came of an attempt to renew a guarantee; what else the server says is in `model_extra`."""

    outcome: str
    attempt: int | None = None
    version: int | None = None
    bundle: str | None = None
