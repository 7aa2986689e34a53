"""Certificates that share one delta: the two chains of a verdict, and the slices of a traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from demur.calibration.certificate import Certificate
from demur.calibration.certify import VALID_FOR, Rows, certify, check_level, finite_column, issue, run_plan
from demur.calibration.errors import CertificateError
from demur.calibration.multiple_testing import fewest_rows, spent_level
from demur.calibration.thresholds import plan


@dataclass(frozen=True)
class VerdictCertificates:
    """Error <= alpha among trusted and <= beta among not deferred; both hold together at confidence 1 - delta."""

    trusted: Certificate
    not_deferred: Certificate


def certify_verdicts(
    score: ArrayLike,
    correct: ArrayLike,
    *,
    alpha: float = 0.05,
    beta: float = 0.30,
    delta: float = 0.05,
    unlabelled: ArrayLike | None = None,
    **options: Any,
) -> VerdictCertificates:
    """Two chains with `delta/2` each: which scores may be trusted, and which need not be deferred.

    Arguments and errors as `certify`, which takes `options`; CertificateError too if `beta` is not above `alpha`.
    """
    check_chains(alpha, beta, delta)
    half = delta / 2
    return VerdictCertificates(
        certify(score, correct, alpha=alpha, delta=half, unlabelled=unlabelled, claim="trusted", **options),
        certify(score, correct, alpha=beta, delta=half, unlabelled=unlabelled, claim="not_deferred", **options),
    )


@dataclass(frozen=True)
class SliceCertificates:
    """One certificate a slice; all of them hold together at confidence `1 - delta`."""

    alpha: float
    delta: float
    slices: Mapping[str, Certificate]

    def threshold(self, value: str) -> float | None:
        """The loosest certified threshold of a slice; None (defer) for a slice without one or never seen."""
        certificate = self.slices.get(value)
        return None if certificate is None else certificate.threshold


def certify_slice_verdicts(
    score: ArrayLike,
    correct: ArrayLike,
    slices: ArrayLike,
    *,
    alpha: float = 0.05,
    beta: float = 0.30,
    delta: float = 0.05,
    **options: Any,
) -> dict[str, VerdictCertificates]:
    """Both chains of a verdict for every slice; all of them hold together at confidence `1 - delta`.

    Each chain has `delta/2` and parts it among the slices. Arguments and errors as `certify_slices`, which takes
    `options`; CertificateError too if `beta` is not above `alpha`.
    """
    check_chains(alpha, beta, delta)
    half = delta / 2
    trusted = certify_slices(score, correct, slices, alpha=alpha, delta=half, **options, claim="trusted").slices
    rest = certify_slices(score, correct, slices, alpha=beta, delta=half, **options, claim="not_deferred").slices
    return {value: VerdictCertificates(trusted[value], rest[value]) for value in trusted}


def check_chains(alpha: float, beta: float, delta: float) -> None:
    """CertificateError unless all lie between 0 and 1 and `beta` is above `alpha`."""
    check_level("alpha", alpha)
    check_level("beta", beta)
    check_level("delta", delta)
    if beta <= alpha:
        raise CertificateError(f"beta is {beta}, but must be above alpha, which is {alpha}")


def most_slices(n: int, alpha: float = 0.05, delta: float = 0.05) -> int:
    """How many slices of equal size `n` rows can support: each must be able to reach its main start (0 if none can)."""
    count = 0
    while n // (count + 1) >= 3 * fewest_rows(alpha, delta / (count + 1)):
        count += 1
    return count


def certify_slices(
    score: ArrayLike,
    correct: ArrayLike,
    slices: ArrayLike,
    *,
    alpha: float = 0.05,
    delta: float = 0.05,
    weights: Mapping[str, float] | None = None,
    unlabelled: Mapping[str, ArrayLike] | None = None,
    attempt: int | None = None,
    family: int = 1,
    issued_at: datetime | None = None,
    **options: Any,
) -> SliceCertificates:
    """Certify each slice of the traffic, with error at most `alpha` in each.

    Parameters
    ----------
    slices : shape (n,), strings: a field of the row that is known before the decision.
    weights : share of delta for each slice; by default that of its rows. They are scaled to sum to 1.
    unlabelled : scores of other rows by slice, as in `certify`.
    attempt, family : as in `certify`.
    options : `claim`, `route`, `score_name`, `valid_for` as in `certify`.

    A slice that passed all its tests passes its delta on to the unfinished ones, by weight (the graphical procedure of
    Bretz et al. 2009). Tests of one slice are exact given which rows lie in it.

    Raises CertificateError as `certify`, and for weights that are negative, all zero or of unknown slices.
    """
    check_level("alpha", alpha)
    check_level("delta", delta)
    scores, labels = finite_column("score", score), np.asarray(correct)
    names = np.asarray(slices).astype(str)
    if names.shape != scores.shape or labels.shape != scores.shape:
        raise CertificateError(
            f"score has shape {scores.shape}, correct {labels.shape}, slices {names.shape}: one value a row is needed"
        )
    spend = spent_level(delta, attempt, family)
    present = [str(name) for name in np.unique(names)]
    shares = _shares(present, names, weights)
    rows = {name: Rows.of(scores[names == name], labels[names == name]) for name in present}
    others: dict[str, NDArray[np.float64]] = {
        name: finite_column(f"unlabelled[{name!r}]", values) for name, values in (unlabelled or {}).items()
    }
    # Sizes are planned for the level that a slice starts with; a level passed on meets the same plan.
    plans = {
        name: plan(rows[name].score.size, alpha, shares[name] * spend, others.get(name))
        for name in present
        if shares[name] > 0
    }
    levels = {name: shares[name] * spend for name in plans}
    tested = {name: run_plan(rows[name], plans[name], alpha, levels[name]) for name in plans}
    finished: set[str] = set()
    while True:
        fresh = [name for name in plans if tested[name].finished and name not in finished]
        finished.update(fresh)
        open_slices = [name for name in plans if name not in finished]
        if not fresh or not open_slices:
            break
        freed = sum(levels[name] for name in fresh)
        total = sum(shares[name] for name in open_slices)
        for name in open_slices:
            levels[name] += freed * shares[name] / total
            tested[name] = run_plan(rows[name], plans[name], alpha, levels[name])
    issued = datetime.now(UTC) if issued_at is None else issued_at
    settings: dict[str, Any] = {"claim": "trusted", "route": "label_free", "score_name": "score", **options}
    settings.setdefault("valid_for", VALID_FOR)
    return SliceCertificates(
        alpha,
        delta,
        {
            name: issue(
                rows[name],
                tested[name].thresholds,
                alpha=alpha,
                delta=delta,
                unlabelled=others[name].size if name in others else 0,
                attempt=attempt,
                delta_spent=levels[name],
                issued_at=issued,
                **settings,
            )
            for name in plans
        },
    )


def _shares(present: list[str], names: NDArray[np.str_], weights: Mapping[str, float] | None) -> dict[str, float]:
    if weights is None:
        return {name: float(np.mean(names == name)) for name in present}
    unknown = set(present) - set(weights)
    if unknown:
        raise CertificateError(f"no weight for the slices {sorted(unknown)}")
    values = np.array([weights[name] for name in weights], dtype=float)
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise CertificateError("weights must be finite, not negative and not all zero")
    return {name: float(weights[name] / values.sum()) for name in present}
