"""The internal request and answer between the wires and the decide pipeline."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from demur.decision.readout import Readout
from demur.decision.task import DecisionSpec, PolicyKind, PolicySpec, Task


class Verdict(StrEnum):
    """What the caller should do with a decision."""

    TRUST = "trust"
    REVIEW = "review"
    DEFER = "defer"


class Reason(StrEnum):
    """Why a verdict was given; the closed list of docs/verdicts.md."""

    ABOVE_TRUST_THRESHOLD = "above_trust_threshold"
    BELOW_TRUST_THRESHOLD = "below_trust_threshold"
    BELOW_DEFER_THRESHOLD = "below_defer_threshold"
    LEAST_EXPECTED_COST = "least_expected_cost"
    NOTHING_CERTIFIED = "nothing_certified"
    CERTIFICATE_EXPIRED = "certificate_expired"
    UNCALIBRATED = "uncalibrated"
    LOW_LABEL_MASS = "low_label_mass"
    CALIBRATION_MISMATCH = "calibration_mismatch"
    UNKNOWN_SLICE = "unknown_slice"
    CERTIFICATE_WITHDRAWN = "certificate_withdrawn"
    CERTIFICATE_STARVED = "certificate_starved"
    GUARANTEE_UNKNOWN = "guarantee_unknown"
    AUDIT_STORE_UNAVAILABLE = "audit_store_unavailable"


class Standing(StrEnum):
    """How a certificate stands, as far as this process knows. Its expiry is judged by the certificate's own dates."""

    VALID = "valid"
    STARVED = "starved"
    WITHDRAWN = "withdrawn"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PolicyOverride:
    """A caller's own thresholds, on `p_correct` (the raw probability without calibration); they can only tighten."""

    trust_at: float | None = None
    defer_below: float | None = None
    min_label_mass: float | None = None


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """A candidate policy; `id` is a hash of what it says."""

    policy: PolicySpec
    id: str


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a candidate would have answered: index of the option, verdict, reason and `p_correct`.

    `bundle`, `policy`: ids of the candidates; None where it is the one in force.
    """

    index: int
    verdict: Verdict
    reason: Reason
    p_correct: float | None
    bundle: str | None
    policy: str | None


@dataclass(frozen=True, slots=True)
class DecideRequest:
    """One question about one input. `task` is None for an inline question, whose policy is the safe default.

    `key`: id of the caller's key. `subject`: whom the input is about, so that it can be let go of by that name.
    `slice` is the part of the task's traffic that the input belongs to, None where it is unknown or there are none.
    `shadow`: a policy whose verdict is kept beside the answer.
    """

    spec: DecisionSpec
    input: str
    task: Task | None = None
    policy: PolicySpec = field(default_factory=PolicySpec)
    override: PolicyOverride | None = None
    explain: bool = False
    cache_salt: str | None = None
    key: str | None = None
    subject: str | None = None
    slice: str | None = None
    shadow: ShadowPolicy | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: `prompt_tokens` and `cached_tokens` summed over the reads, `thought_tokens` generated."""

    prompt_tokens: int
    cached_tokens: int
    thought_tokens: int
    reads: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds: in all, and of that awaiting the engine."""

    total_ms: float
    engine_ms: float


@dataclass(frozen=True, slots=True)
class CalibrationInfo:
    """How `p_correct` was obtained: the calibrator's kind, the bundle's id, labels fitted on, when (ISO 8601)."""

    method: str
    bundle: str
    n: int
    fitted_at: str


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """Error among decisions with `score` from `threshold` on is at most `alpha`; the procedure errs with `delta`.

    `n` certifying rows, at attempt `attempt` (None: the only one); times in ISO 8601. `slice`: the part of the traffic
    that it speaks of, None for all of it.
    """

    alpha: float
    delta: float
    threshold: float
    n: int
    score: str
    attempt: int | None
    issued_at: str
    expires_at: str | None
    slice: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The internal answer, rendered by each wire in its own form.

    `probabilities` float64 [K] in option order, calibrated where `calibration` is given. `rule` is the kind of policy
    that was in force, `reason_detail` what a reason leaves open, such as the parts that a bundle does not fit.
    `shadow`: what the task's shadow bundle, shadow policy, or both together would have answered.
    `guarantee`: key of the certificate whose trusted set the decision belongs to, also where it is not trusted since
    that certificate is withdrawn, starved or expired. `reading` is what the model said. `audit`: whether it was drawn,
    None where nobody draws or asks.
    """

    id: str
    request: DecideRequest
    index: int
    verdict: Verdict
    reason: Reason
    probabilities: NDArray[np.float64]
    label_mass: float
    model: str
    readout: str
    readout_note: str | None
    usage: Usage
    timings: Timings
    thought: str | None = None
    thought_finish: str | None = None
    truncated: bool = False
    p_correct: float | None = None
    score: float | None = None
    rule: PolicyKind = PolicyKind.CERTIFIED
    reason_detail: str | None = None
    calibration: CalibrationInfo | None = None
    certificate: CertificateInfo | None = None
    guarantee: str | None = None
    shadow: Shadow | None = None
    slice: str | None = None
    reading: Readout | None = None
    audit: bool | None = None

    @property
    def name(self) -> str:
        """The chosen option's name."""
        return self.request.spec.question.options[self.index].name


class Decider(Protocol):
    """What the wires call. Raises only `DemurError`s; cancelling a call aborts its engine requests."""

    async def decide(self, request: DecideRequest) -> Decision:
        """Reads, calibrates and judges one request."""
        ...
