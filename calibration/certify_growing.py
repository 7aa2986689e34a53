"""Certification on a growing sample: betting e-processes that may be looked at after every label."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from demur.calibration.certify import check_level, finite_column
from demur.calibration.errors import CertificateError
from demur.calibration.grid import is_trusted
from demur.calibration.multiple_testing import fallback
from demur.calibration.thresholds import MAIN_SHARE, OTHER_SHARE, OTHER_START

# Bets on a risk of these shares of alpha, each with the same stake.
BETS = np.array([0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


class GrowingCertification:
    """Each threshold runs an e-process against H0: risk >= alpha; 1 over its running maximum is its p-value.

    For a risk q below alpha, the likelihood ratio of q against alpha is a supermartingale under H0, and so is the
    average over several q (Waudby-Smith and Ramdas, arXiv:2010.09686). By Ville's inequality the p-values hold at
    all times at once, so the fallback procedure on them may be run after every label without spending anything more.

    Parameters
    ----------
    thresholds : shape (m,), fixed before the first row that certifies, strict to loose: for instance those of scores
        seen earlier (`threshold_below(np.quantile(...))`).
    shares : shape (m,), shares of delta that sum to at most 1; by default .6 for the strictest and .4 at 40% of the
        list.

    Raises CertificateError for levels outside (0, 1), or thresholds and shares that do not fit together.
    """

    def __init__(
        self, thresholds: ArrayLike, *, alpha: float = 0.05, delta: float = 0.05, shares: ArrayLike | None = None
    ) -> None:
        check_level("alpha", alpha)
        check_level("delta", delta)
        self.alpha, self.delta = alpha, delta
        self.thresholds_tested = finite_column("thresholds", thresholds)
        m = self.thresholds_tested.size
        if (np.diff(self.thresholds_tested) >= 0).any():
            raise CertificateError("thresholds must fall from strict to loose")
        if shares is None:
            given = np.zeros(m)
            given[0] += MAIN_SHARE
            given[int(OTHER_START * m)] += OTHER_SHARE
        else:
            given = finite_column("shares", shares)
        if given.shape != (m,) or (given < 0).any() or given.sum() > 1 + 1e-12:
            raise CertificateError("shares must be one a threshold, not negative, and sum to at most 1")
        self._levels = given * delta
        risk = alpha * BETS
        self._log_wrong = np.log(risk / alpha)
        self._log_right = np.log1p(-risk) - np.log1p(-alpha)
        self._log_wealth = np.zeros((m, BETS.size))
        self._best = np.zeros(m)
        self.trusted = np.zeros(m, dtype=np.int64)
        self.errors = np.zeros(m, dtype=np.int64)

    def update(self, score: ArrayLike, correct: ArrayLike) -> None:
        """Take rows in the order they were drawn; both shape (n,). CertificateError if they do not fit together."""
        scores, right = finite_column("score", score), np.asarray(correct)
        if right.shape != scores.shape or not np.isin(right, (0, 1)).all():
            raise CertificateError("correct must hold one true/false or 0/1 for each score")
        for i, threshold in enumerate(self.thresholds_tested.tolist()):
            wrong = ~right[is_trusted(scores, threshold)].astype(bool)
            if wrong.size == 0:
                continue
            steps = np.where(wrong[:, None], self._log_wrong, self._log_right)
            path = self._log_wealth[i] + np.cumsum(steps, axis=0)
            self._log_wealth[i] = path[-1]
            self._best[i] = max(self._best[i], float((logsumexp(path, axis=1) - np.log(BETS.size)).max()))
            self.trusted[i] += wrong.size
            self.errors[i] += int(wrong.sum())

    @property
    def p_values(self) -> NDArray[np.float64]:
        """Always-valid p-values, shape (m,)."""
        return np.exp(-self._best)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """All certified so far; what is certified once stays so."""
        return tuple(self.thresholds_tested[fallback(self.p_values, self._levels)[0]].tolist())

    @property
    def threshold(self) -> float | None:
        """The loosest certified so far, or None."""
        return min(self.thresholds, default=None)
