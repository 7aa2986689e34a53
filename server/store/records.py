"""What the store keeps, as its readers see it. Times carry a zone; they inform, and nothing is ordered by them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from demur.decision.readout import Readout

GuaranteeState = Literal["valid", "starved", "expired", "withdrawn"]
AttemptKind = Literal["recertify", "recalibrate", "calibrate"]


@dataclass(frozen=True, slots=True)
class Draw:
    """Whether a decision is audited: drawn iff `u < rate`. `u` in [0, 1) is a keyed hash of the decision's id."""

    u: float
    rate: float
    drawn: bool


@dataclass(frozen=True, slots=True)
class ShadowRecord:
    """What a candidate would have answered; `bundle`, `policy`: ids of the candidates, None for the one in force."""

    decision: str
    verdict: str
    reason: str
    p_correct: float | None
    bundle: str | None
    policy: str | None


@dataclass(frozen=True, slots=True, eq=False)
class DecisionRecord:
    """One decision as it was answered.

    `options`: names of all K; `option`: index of the one decided. `probabilities`, `logprobs`, `scores`: float64 [K],
    the last two raw, as in a `Readout` (empty once erased). `guarantee`: key of the certificate process whose trusted
    set it belongs to, also where the verdict shown was another because that certificate was withdrawn.
    `input` only where the task stores inputs; `input_hash` and `subject` are keyed hashes.
    """

    id: str
    task: str
    task_hash: str
    at: datetime
    options: tuple[str, ...]
    option: int
    verdict: str
    reason: str
    probabilities: NDArray[np.float64]
    logprobs: NDArray[np.float64]
    scores: NDArray[np.float64]
    label_mass: float
    p_correct: float | None
    score: float | None
    bundle: str | None
    guarantee: str | None
    slice: str | None
    model: str
    mode: str
    readout: str
    input_hash: str
    draw: Draw
    input: str | None = None
    key: str | None = None
    subject: str | None = None
    erased: bool = False
    shadow: ShadowRecord | None = None

    @property
    def decision(self) -> str:
        """The chosen option's name."""
        return self.options[self.option]

    @property
    def reading(self) -> Readout:
        """What the model said, for fitting anew."""
        return Readout(self.logprobs, self.scores, self.label_mass)


@dataclass(frozen=True, slots=True, eq=False)
class AuditRecord:
    """A drawn decision. `seq` is its place in drawn order, without gaps and the same for every process.

    `label`: the one in force now, None while it is missing; `second`: another person's, where two are asked.
    `open`: a label is still wanted. `least_rate`: the smallest rate at which decisions of any verdict were drawn when
    this one was; 0 if those of some verdict were not drawn at all.
    """

    seq: int
    decision: DecisionRecord
    due: datetime
    label: str | None
    second: str | None
    double: bool
    open: bool
    least_rate: float

    @property
    def error(self) -> bool | None:
        """Whether the decision was wrong; None without a label."""
        return None if self.label is None else self.label != self.decision.decision

    @property
    def let_go(self) -> bool:
        """Erased without a label before that was due: none is missing."""
        return self.label is None and not self.open


@dataclass(frozen=True, slots=True, eq=False)
class LabelRecord:
    """A label that was given. `seq` is its place among all labels, without gaps and the same for every process.

    `audit`: the audit, as it is now, where Demur drew the decision: only then is the label evidence. `second`: another
    person's label of an audit that two are asked about; it corrects nothing. `corrects`: seq of the label that this
    one replaces. `key`: name or id of the key that gave it.
    """

    seq: int
    decision_id: str
    task: str
    label: str
    source: str | None
    key: str | None
    at: datetime
    received_at: datetime
    corrects: int | None = None
    audit: AuditRecord | None = None
    second: bool = False

    @property
    def evidence(self) -> bool:
        """Whether it may enter risk, calibration and certificates."""
        return self.audit is not None


@dataclass(frozen=True, slots=True)
class GuaranteeRecord:
    """A certificate's process: one per certificate and slice. Audits after `first_audit_seq` count.

    `ended_audit_seq`: the last audit when it was withdrawn.
    """

    key: str
    task: str
    slice: str | None
    bundle: str
    alpha: float
    delta: float
    issued_at: datetime
    expires_at: datetime | None
    first_audit_seq: int
    state: GuaranteeState = "valid"
    withdrawn_at: datetime | None = None
    ended_audit_seq: int | None = None


@dataclass(frozen=True, slots=True)
class BundleVersion:
    """A bundle that a task was or is served with; its files are in the store under its id."""

    task: str
    version: int
    bundle: str
    guarantees: tuple[str, ...]
    adopted_at: datetime
    adopted_by: str | None
    active: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt on one question, counted from 1. `outcome` is None while it is under way."""

    task: str
    question: str
    number: int
    kind: AttemptKind
    at: datetime
    delta: float
    outcome: str | None = None
