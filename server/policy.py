"""From a readout to a verdict. The one place where trust is decided; calibration plugs in here.

Fail closed: what is unknown is never `trust`.
"""

from dataclasses import dataclass, replace

from demur.decision.task import DEFAULT_MIN_LABEL_MASS, PolicySpec, ReadoutKind
from demur.server.types import PolicyOverride, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and the rule that decided it."""

    verdict: Verdict
    reason: Reason


def tightened(policy: PolicySpec, override: PolicyOverride | None) -> PolicySpec:
    """The task's policy with a caller's thresholds where they are stricter; a looser one has no effect.

    No `trust_at` means that nothing is trusted, which no number tightens.
    """
    if override is None:
        return policy
    trust_at = policy.trust_at
    if trust_at is not None and override.trust_at is not None:
        trust_at = max(trust_at, override.trust_at)
    return replace(
        policy,
        trust_at=trust_at,
        defer_below=_higher(policy.defer_below, override.defer_below),
        min_label_mass=_higher(policy.min_label_mass, override.min_label_mass),
    )


def judge(
    policy: PolicySpec,
    override: PolicyOverride | None,
    *,
    readout: ReadoutKind,
    probability: float,
    p_correct: float | None,
    label_mass: float,
) -> Judgement:
    """Judges one decision.

    `probability` is the chosen option's raw probability; `p_correct` its calibrated one, None without calibration. The
    raw probability takes its place only where the task allows uncalibrated trust.
    """
    default_mass = DEFAULT_MIN_LABEL_MASS[readout]
    if policy.min_label_mass is None:
        policy = replace(policy, min_label_mass=default_mass)
    policy = tightened(policy, override)
    if not label_mass >= (policy.min_label_mass or 0.0):  # also true for NaN
        return Judgement(Verdict.DEFER, Reason.LOW_LABEL_MASS)
    score = p_correct if p_correct is not None else probability
    if policy.defer_below is not None and not score >= policy.defer_below:
        return Judgement(Verdict.DEFER, Reason.BELOW_DEFER_THRESHOLD)
    if p_correct is None and not policy.allow_uncalibrated:
        return Judgement(Verdict.REVIEW, Reason.UNCALIBRATED)
    if policy.trust_at is not None and score >= policy.trust_at:
        return Judgement(Verdict.TRUST, Reason.ABOVE_TRUST_THRESHOLD)
    return Judgement(Verdict.REVIEW, Reason.BELOW_TRUST_THRESHOLD)


def _higher(task: float | None, caller: float | None) -> float | None:
    if task is None or caller is None:
        return task if caller is None else caller
    return max(task, caller)
