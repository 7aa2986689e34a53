"""Issuing certificates: which of the planned thresholds keep the error at or below alpha."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import ArrayLike, NDArray

from demur.calibration.certificate import ASSUMPTIONS, Certificate, Claim, Route, TestedThreshold
from demur.calibration.errors import CertificateError
from demur.calibration.grid import STEP, on_grid, threshold_above
from demur.calibration.multiple_testing import binomial_p_values, fallback, spent_level
from demur.calibration.thresholds import ThresholdPlan, plan, tie_generator

VALID_FOR = timedelta(days=90)
LARGEST_SCORE = 1e9


def certify(
    score: ArrayLike,
    correct: ArrayLike,
    *,
    alpha: float = 0.05,
    delta: float = 0.05,
    unlabelled: ArrayLike | None = None,
    claim: Claim = "trusted",
    route: Route = "label_free",
    score_name: str = "score",
    attempt: int | None = None,
    family: int = 1,
    issued_at: datetime | None = None,
    valid_for: timedelta | None = VALID_FOR,
) -> Certificate:
    """Certify every threshold that provably (at confidence `1 - delta`) keeps the error among trusted at `alpha`.

    Parameters
    ----------
    score : shape (n,), any finite numbers, higher is surer; of drawn rows, each independent of the others.
    correct : shape (n,), booleans or 0/1: whether the decision agrees with its label.
    unlabelled : shape (u,), scores of other rows of the same traffic, none of them certifying (500 are useful, 2,000
        plenty). They place the first test and find the scores that many rows share. Without them the certificate is
        as valid; it is weaker where little can be trusted or scores are few-valued.
    claim : what the certificate speaks of; it changes the words and nothing else.
    route : "label_free" if no label touched the score or the decision, "split" if those labels were of other rows.
    attempt : None if this question is put once, which spends all of delta. If it may be put again on more rows, the
        number of this attempt, from 1 up: attempt j spends `delta/(j(j+1))`.
    family : configurations that were compared on these very rows, this one among them: each may spend delta/family, and
        `delta` stays the chance that any of them is falsely certified.
    valid_for : from `issued_at` (now if None) to the expiry; None never expires.

    Returns
    -------
    Certificate, with `threshold` None where nothing could be certified.

    Raises
    ------
    CertificateError : levels outside (0, 1), lengths that differ, no rows, values not finite or not 0/1.

    Source: Learn-then-Test (Angelopoulos et al., arXiv:2110.01052) with exact binomial p-values and the fallback
    procedure (Wiens 2003) over several starts; trusted sets of planned size, see docs/certificates.md.
    """
    check_level("alpha", alpha)
    check_level("delta", delta)
    rows = Rows.of(score, correct)
    spend = spent_level(delta, attempt, family)
    others = None if unlabelled is None else finite_column("unlabelled", unlabelled)
    tested = run_plan(rows, plan(rows.score.size, alpha, spend, others), alpha, spend)
    return issue(
        rows,
        tested.thresholds,
        alpha=alpha,
        delta=delta,
        claim=claim,
        score_name=score_name,
        unlabelled=0 if others is None else int(others.size),
        route=route,
        attempt=attempt,
        delta_spent=spend,
        issued_at=issued_at,
        valid_for=valid_for,
    )


@dataclass(frozen=True)
class Rows:
    """Certifying rows, best score first: `score` on the grid, shape (n,), and `wrong`, shape (n,), boolean.

    Rows of one score stand in a random order that depends on the scores alone.
    """

    score: NDArray[np.float64]
    wrong: NDArray[np.bool_]

    @classmethod
    def of(cls, score: ArrayLike, correct: ArrayLike) -> Rows:
        """Check and rank the two columns. CertificateError as in `certify`."""
        scores = on_grid(finite_column("score", score))
        right = np.asarray(correct)
        if right.ndim != 1 or right.shape != scores.shape:
            raise CertificateError(f"score has shape {scores.shape}, correct {right.shape}: one value a row is needed")
        if right.dtype != np.bool_ and not np.isin(right, (0, 1)).all():
            bad = right[~np.isin(right, (0, 1))][0]
            raise CertificateError(f"correct holds {bad!r}, but must be true/false or 0/1")
        # One integer a row sorts faster than two columns, and makes the result independent of the rows' order.
        points = np.rint(scores / STEP).astype(np.int64)
        packed = np.sort(-2 * points + ~right.astype(bool))
        return cls._shuffle_ties(on_grid(-(packed // 2) * STEP), packed % 2 == 1)

    @classmethod
    def _shuffle_ties(cls, score: NDArray[np.float64], wrong: NDArray[np.bool_]) -> Rows:
        same = score[1:] == score[:-1]
        tied = np.append(same, False) | np.append(False, same)
        if tied.any():
            keys = tie_generator(score).random(int(tied.sum()))
            wrong[tied] = wrong[tied][np.lexsort((keys, -score[tied]))]
        return cls(score, wrong)


@dataclass(frozen=True)
class Tested:
    """Outcome of a plan: what was tested at thresholds that can be served, and whether every test was passed."""

    thresholds: tuple[TestedThreshold, ...]
    finished: bool


def run_plan(rows: Rows, planned: ThresholdPlan, alpha: float, spend: float) -> Tested:
    """Test a plan at `spend` in all, from the smallest trusted set to the largest."""
    if planned.sizes.size == 0:
        return Tested((), finished=False)
    sizes = planned.sizes
    mistakes = np.concatenate([[0], np.cumsum(rows.wrong)])
    # A size whose edge runs through a tie cannot be served: it is tested, passes its level on and is not listed.
    next_score = rows.score[sizes]
    servable = rows.score[sizes - 1] > next_score

    reached = np.searchsorted(-rows.score, -planned.thresholds, side="right")
    # Thresholds that trust everything are one.
    used = (reached > sizes[0]) & (np.arange(reached.size) <= np.searchsorted(reached, rows.score.size))
    fixed, reached = planned.thresholds[used], reached[used]

    place = np.searchsorted(sizes, reached, side="left")
    thresholds = np.insert(threshold_above(next_score), place, fixed)
    trusted = np.insert(sizes, place, reached)
    shares = np.insert(planned.shares, place, 0.0)
    listed = np.insert(servable, place, True)
    errors = mistakes[trusted]
    p = binomial_p_values(errors, trusted, alpha)
    rejected, levels = fallback(p, shares * spend)
    columns = (column[listed].tolist() for column in (thresholds, trusted, errors, p, levels, rejected))
    return Tested(tuple(TestedThreshold(*column) for column in zip(*columns, strict=True)), bool(rejected.all()))


def issue(
    rows: Rows,
    tested: tuple[TestedThreshold, ...],
    *,
    alpha: float,
    delta: float,
    claim: Claim,
    score_name: str,
    unlabelled: int,
    route: Route,
    attempt: int | None,
    delta_spent: float,
    issued_at: datetime | None,
    valid_for: timedelta | None,
) -> Certificate:
    """Put what was tested into a certificate."""
    if route not in ASSUMPTIONS:
        raise CertificateError(f"route is {route!r}, but must be one of {sorted(ASSUMPTIONS)}")
    issued = datetime.now(UTC) if issued_at is None else issued_at
    if issued.tzinfo is None:
        raise CertificateError("issued_at must carry a time zone")
    return Certificate(
        alpha=alpha,
        delta=delta,
        claim=claim,
        score=score_name,
        thresholds=tuple(t.threshold for t in tested if t.certified),
        n=int(rows.score.size),
        errors=int(rows.wrong.sum()),
        unlabelled=unlabelled,
        route=route,
        attempt=attempt,
        delta_spent=delta_spent,
        evidence=tested,
        assumptions=ASSUMPTIONS[route],
        issued_at=issued,
        expires_at=None if valid_for is None else issued + valid_for,
    )


def check_level(name: str, value: float) -> None:
    """CertificateError unless 0 < value < 1."""
    if not 0.0 < value < 1.0:
        raise CertificateError(f"{name} is {value!r}, but must lie strictly between 0 and 1")


def finite_column(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """A non-empty column of finite numbers, shape (n,), or CertificateError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise CertificateError(f"{name} has shape {array.shape}: a non-empty column is needed")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise CertificateError(f"{name}[{row}] is {array[row]}, but must be finite")
    if np.abs(array).max() > LARGEST_SCORE:
        raise CertificateError(f"{name} holds values beyond {LARGEST_SCORE:g}, where the grid of 1e-6 means nothing")
    return array
