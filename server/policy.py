"""From a calibrated readout to a verdict. The one place where trust is decided.

Fail closed: what is unknown is never `trust`, and NaN fails every comparison.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import inf

import numpy as np

from demur.calibration import PolicyError, budget_threshold, cheapest_one, reaches
from demur.decision.task import PolicyKind, PolicySpec, ReadoutKind, Scale
from demur.server.calibrated import Applied, Calibrated, min_label_mass, policy_hash
from demur.server.guarantee import Guarantee, statement
from demur.server.types import CertificateInfo, PolicyOverride, Reason, Standing, Verdict

_STANDINGS = {
    Standing.WITHDRAWN: Reason.CERTIFICATE_WITHDRAWN,
    Standing.STARVED: Reason.CERTIFICATE_STARVED,
    Standing.UNKNOWN: Reason.GUARANTEE_UNKNOWN,
}
_BY_COST = (Verdict.TRUST, Verdict.REVIEW, Verdict.DEFER)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a decision is judged by.

    `probability` is the chosen option's raw one. `calibrated` and `applied` are given together, by a bundle that fits;
    `mismatches` names the parts of one that does not, and then they are not given. `standing` is that of the bundle's
    certificate. `slice` is that of the input.
    """

    readout: ReadoutKind
    probability: float
    label_mass: float
    calibrated: Calibrated | None = None
    applied: Applied | None = None
    mismatches: tuple[str, ...] = ()
    standing: Standing = Standing.VALID
    slice: str | None = None

    @property
    def guarantee(self) -> Guarantee | None:
        """What the bundle guarantees of the input's slice, which is known."""
        whole = None if self.calibrated is None else self.calibrated.guarantee
        return None if whole is None else whole.of(self.slice)

    @property
    def unknown_slice(self) -> bool:
        """Whether the bundle parts traffic into slices, and the input is of none that it knows."""
        whole = None if self.calibrated is None else self.calibrated.guarantee
        return whole is not None and not whole.known(self.slice)

    @property
    def confidence(self) -> float:
        """`p_correct`, or the raw probability where there is none."""
        known = self.applied is not None and self.applied.p_correct is not None
        return self.applied.p_correct if known else self.probability  # type: ignore[union-attr, return-value]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the rule and the reason that decided it, and the certificate that the trusted set carries, if any.

    `guarantee`: key of the certificate in whose trusted set the decision lies, whatever became of that certificate.
    """

    verdict: Verdict
    reason: Reason
    rule: PolicyKind
    detail: str | None = None
    certificate: CertificateInfo | None = None
    guarantee: str | None = None


@dataclass(frozen=True, slots=True)
class _Ruled:
    """What a rule says before the certificate's dates are looked at."""

    verdict: Verdict
    reason: Reason
    detail: str | None = None


def judge(
    policy: PolicySpec, override: PolicyOverride | None, evidence: Evidence, *, now: datetime | None = None
) -> Judgement:
    """Judges one decision at the time `now`."""
    rule = policy.rule
    if evidence.mismatches:
        parts = ", ".join(evidence.mismatches)
        return Judgement(Verdict.DEFER, Reason.CALIBRATION_MISMATCH, rule, f"not what the bundle was made for: {parts}")
    if evidence.unknown_slice:
        return Judgement(Verdict.DEFER, Reason.UNKNOWN_SLICE, rule)
    override = override or PolicyOverride()
    mass = max(min_label_mass(policy, evidence.readout), override.min_label_mass or 0.0)
    # With no mass at all nothing was said, and the options' order among themselves is an accident.
    if not (evidence.label_mass >= mass and evidence.label_mass > 0.0):
        ruled = _Ruled(Verdict.DEFER, Reason.LOW_LABEL_MASS)
    else:
        ruled = _rule(policy, override, evidence)
    return _dated(policy, override, evidence, ruled, now or datetime.now(UTC))


def carried(
    policy: PolicySpec, guarantee: Guarantee | None, readout: ReadoutKind, now: datetime
) -> CertificateInfo | None:
    """The certificate that a policy's trusted set carries at `now`; None if that set is not on its list."""
    threshold = _certified_threshold(policy, guarantee, readout)
    if threshold is None or guarantee is None or guarantee.expired(now):
        return None
    return statement(guarantee, threshold)


def _certified_threshold(policy: PolicySpec, guarantee: Guarantee | None, readout: ReadoutKind) -> float | None:
    """The threshold on the list at which the policy's trusted set begins, whatever the date."""
    if guarantee is None or guarantee.trusted is None or guarantee.policy_hash != policy_hash(policy, readout):
        return None
    match policy.rule:
        case PolicyKind.CERTIFIED:
            return guarantee.trust_at
        case PolicyKind.FIXED if policy.scale is Scale.SCORE or guarantee.score == "p_correct":
            return policy.trust_at if guarantee.trusted.covers(policy.trust_at) else None
        case _:
            return None


def _rule(policy: PolicySpec, override: PolicyOverride, evidence: Evidence) -> _Ruled:
    if override.defer_below is not None and not reaches(evidence.confidence, override.defer_below):
        return _Ruled(Verdict.DEFER, Reason.BELOW_DEFER_THRESHOLD)
    match policy.rule:
        case PolicyKind.FIXED:
            ruled = _fixed(policy, evidence)
        case PolicyKind.CERTIFIED:
            ruled = _certified(evidence)
        case PolicyKind.COST:
            ruled = _cost(policy, evidence)
        case PolicyKind.BUDGET:
            ruled = _budget(policy, evidence)
    if (
        ruled.verdict is Verdict.TRUST
        and override.trust_at is not None
        and not reaches(evidence.confidence, override.trust_at)
    ):
        return _Ruled(Verdict.REVIEW, Reason.BELOW_TRUST_THRESHOLD)
    return ruled


def _fixed(policy: PolicySpec, evidence: Evidence) -> _Ruled:
    value = evidence.confidence
    known = evidence.applied is not None and evidence.applied.p_correct is not None
    if policy.scale is Scale.SCORE and evidence.applied is not None:
        value = evidence.applied.score
    if policy.defer_below is not None and not reaches(value, policy.defer_below):
        return _Ruled(Verdict.DEFER, Reason.BELOW_DEFER_THRESHOLD)
    if not known and not policy.allow_uncalibrated:
        return _Ruled(Verdict.REVIEW, Reason.UNCALIBRATED)
    return _from(value, policy.trust_at)


def _certified(evidence: Evidence) -> _Ruled:
    if evidence.applied is None or evidence.calibrated is None:
        return _Ruled(Verdict.REVIEW, Reason.UNCALIBRATED)
    guarantee = evidence.guarantee
    trust = None if guarantee is None else guarantee.trust_at
    score = evidence.applied.score
    if trust is not None and reaches(score, trust):
        return _from(score, trust)
    if guarantee is not None and guarantee.not_deferred is not None:
        answered = guarantee.answer_at
        # Where the stricter promise reaches further than the looser one, it covers the answers too.
        defer = min(inf if trust is None else trust, inf if answered is None else answered)
        if not reaches(score, defer):
            nothing = defer == inf
            return _Ruled(Verdict.DEFER, Reason.NOTHING_CERTIFIED if nothing else Reason.BELOW_DEFER_THRESHOLD)
    if trust is None:
        return _Ruled(Verdict.REVIEW, Reason.NOTHING_CERTIFIED)
    return _from(score, trust)


def _cost(policy: PolicySpec, evidence: Evidence) -> _Ruled:
    applied = evidence.applied
    if applied is None or applied.p_correct is None:
        return _Ruled(Verdict.REVIEW, Reason.UNCALIBRATED)
    if policy.cost is None or policy.review_price is None or policy.defer_price is None:
        raise PolicyError("a cost policy without its costs")
    # A policy's costs were checked when it was read, and a distribution comes from the calibrator.
    trust = float(applied.probabilities @ policy.cost[applied.index])
    return _Ruled(_BY_COST[cheapest_one(trust, policy.review_price, policy.defer_price)], Reason.LEAST_EXPECTED_COST)


def _budget(policy: PolicySpec, evidence: Evidence) -> _Ruled:
    calibrated = evidence.calibrated
    if calibrated is None or evidence.applied is None or evidence.applied.p_correct is None:
        return _Ruled(Verdict.REVIEW, Reason.UNCALIBRATED)
    if calibrated.reference is None or policy.to_people is None:
        detail = "the bundle has no reference scores to count a budget on"
        return _Ruled(Verdict.REVIEW, Reason.UNCALIBRATED, detail)
    mass = min_label_mass(policy, evidence.readout)
    return _from(evidence.applied.score, _budget_threshold(calibrated, policy.to_people, mass))


@lru_cache(maxsize=64)
def _budget_threshold(calibrated: Calibrated, to_people: float, least_mass: float) -> float:
    scores = calibrated.reference
    if calibrated.reference_mass is not None:
        # What is deferred for its label mass goes to people first, whatever its score.
        scores = np.where(calibrated.reference_mass >= least_mass, scores, 0.0)  # type: ignore[arg-type]
    return budget_threshold(scores, to_people)  # type: ignore[arg-type]  # the caller has looked


def _from(value: float, threshold: float | None) -> _Ruled:
    if threshold is not None and reaches(value, threshold):
        return _Ruled(Verdict.TRUST, Reason.ABOVE_TRUST_THRESHOLD)
    return _Ruled(Verdict.REVIEW, Reason.BELOW_TRUST_THRESHOLD)


def _dated(policy: PolicySpec, override: PolicyOverride, evidence: Evidence, ruled: _Ruled, now: datetime) -> Judgement:
    """The judgement, with the certificate that the trusted set carries; one that is lost takes its trust along."""
    guarantee = evidence.guarantee
    if guarantee is None:
        return Judgement(ruled.verdict, ruled.reason, policy.rule, ruled.detail)
    trusted, tightened = ruled.verdict is Verdict.TRUST, _tightens(policy, override, evidence.readout)
    listed = _certified_threshold(policy, guarantee, evidence.readout) is not None
    # The trusted set is all that the policy trusts; what a request has tightened is a part that the caller chose.
    member = guarantee.key if trusted and listed and not tightened else None
    # A certified policy rests on the certificate even where a request has tightened it.
    lost = _lost(guarantee, evidence.standing, now) if listed or policy.rule is PolicyKind.CERTIFIED else None
    if trusted and lost is not None:
        return Judgement(Verdict.REVIEW, lost.reason, policy.rule, lost.detail, guarantee=member)
    certificate = None
    if not tightened and evidence.standing is Standing.VALID:
        certificate = carried(policy, guarantee, evidence.readout, now)
    return Judgement(ruled.verdict, ruled.reason, policy.rule, ruled.detail, certificate, member)


def _lost(guarantee: Guarantee, standing: Standing, now: datetime) -> _Ruled | None:
    """Why a certificate supports no trust at `now`; the gravest reason."""
    expired = guarantee.expired(now)
    if standing is Standing.WITHDRAWN or (not expired and standing is not Standing.VALID):
        return _Ruled(Verdict.REVIEW, _STANDINGS[standing])
    if not expired:
        return None
    detail = None if guarantee.ends_at is None else f"it expired at {guarantee.ends_at.isoformat()}"
    return _Ruled(Verdict.REVIEW, Reason.CERTIFICATE_EXPIRED, detail)


def _tightens(policy: PolicySpec, override: PolicyOverride, readout: ReadoutKind) -> bool:
    """Whether a caller's thresholds may change the trusted set: then it is none that was certified."""
    mass = override.min_label_mass
    if mass is not None and mass > min_label_mass(policy, readout):
        return True
    return any(value is not None and value > 0.0 for value in (override.trust_at, override.defer_below))
