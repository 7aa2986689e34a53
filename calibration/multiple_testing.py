"""Exact p-values for "the error is above alpha", and procedures that test many thresholds without inflating delta."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from demur.calibration.errors import CertificateError


def binomial_p_values(errors: ArrayLike, trusted: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """P-values of H0: risk >= alpha, from integer counts.

    `P(Binomial(trusted, alpha) <= errors)`, exact given which rows are trusted by a threshold fixed beforehand
    (Learn-then-Test, Angelopoulos et al., arXiv:2110.01052, section 2). No trusted row gives 1.
    """
    p: NDArray[np.float64] = np.asarray(binom.cdf(np.asarray(errors), np.asarray(trusted), alpha), dtype=np.float64)
    return p


def fewest_rows(alpha: float, level: float) -> int:
    """Trusted rows below which even no error at all cannot reject H0: risk >= alpha at `level`."""
    return int(np.ceil(np.log(level) / np.log1p(-alpha)))


def most_errors(trusted: ArrayLike, alpha: float, level: float) -> NDArray[np.int64]:
    """Largest count of errors among `trusted` rows that still rejects at `level`; -1 where none does."""
    n = np.asarray(trusted, dtype=np.int64)
    # ppf gives the smallest count whose cdf reaches the level: one less, unless the cdf equals the level.
    k = np.asarray(binom.ppf(level, n, alpha), dtype=np.int64)
    return np.where(binom.cdf(k, n, alpha) <= level, k, k - 1)


def fallback(p_values: ArrayLike, levels: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Fallback procedure (Wiens 2003; Wiens and Dmitrienko 2005) over hypotheses in a fixed order.

    Parameters
    ----------
    p_values : shape (m,), in testing order.
    levels : shape (m,), the level each hypothesis starts with; they sum to delta.

    Returns
    -------
    rejected : shape (m,).
    tested_at : shape (m,), the level each was tested at: its own plus that of the one before, if rejected.

    The chance of any false rejection is at most `sum(levels)` whatever the dependence: up to the first true hypothesis
    that is rejected, no level from before a true hypothesis has passed it, so the levels that reach true
    hypotheses are disjoint parts of the sum.
    """
    p, own = np.asarray(p_values, dtype=np.float64), np.asarray(levels, dtype=np.float64)
    rejected = np.zeros(p.size, dtype=bool)
    tested_at = np.zeros(p.size)
    carried = 0.0
    for i, (value, level) in enumerate(zip(p.tolist(), own.tolist(), strict=True)):
        carried += level
        tested_at[i] = carried
        if value <= carried and carried > 0.0:
            rejected[i] = True
        else:
            carried = 0.0
    return rejected, tested_at


def attempt_level(delta: float, attempt: int) -> float:
    """Level of the `attempt`-th (from 1) certification of one question: `delta/(j(j+1))`, which sums to delta.

    Raises CertificateError if `attempt` is not a positive integer.
    """
    if attempt != int(attempt) or attempt < 1:
        raise CertificateError(f"attempt is {attempt!r}, but must be a whole number from 1 up")
    return delta / (attempt * (attempt + 1))


def spent_level(delta: float, attempt: int | None, family: int) -> float:
    """Level that each of `family` configurations, compared on the same rows, may spend on an attempt (None: the only).

    Raises CertificateError as `attempt_level`, and if `family` is not a positive integer.
    """
    if family != int(family) or family < 1:
        raise CertificateError(f"family is {family!r}, but must be a whole number from 1 up")
    return (delta if attempt is None else attempt_level(delta, attempt)) / family
