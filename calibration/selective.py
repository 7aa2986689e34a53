"""How well confidence ranks decisions: AUROC, the risk-coverage curve, AURC and excess AURC.

Equal confidences cannot be told apart by a threshold, so ties are never broken by row order: each figure is its
expectation over random orders within the ties.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demur.calibration.arrays import BoolArray, FloatArray, IntArray, check_correct, check_scores


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The trusted sets that thresholds can reach, strictest first; each array is [number of distinct confidences].

    Attributes:
        threshold: trust where confidence >= threshold.
        trusted: decisions trusted.
        wrong: errors among them.
        n: all decisions.
    """

    threshold: FloatArray
    trusted: IntArray
    wrong: IntArray
    n: int

    @property
    def coverage(self) -> FloatArray:
        """Share of decisions trusted."""
        return self.trusted / self.n

    @property
    def risk(self) -> FloatArray:
        """Share of errors among the trusted."""
        return self.wrong / self.trusted

    @property
    def auroc(self) -> float:
        """Chance that a right decision scores above a wrong one, ties counting half; NaN if either is absent."""
        n_wrong = int(self.wrong[-1])
        n_right = self.n - n_wrong
        if not n_wrong or not n_right:
            return float("nan")
        wrong = np.diff(self.wrong, prepend=0)
        right = np.diff(self.trusted, prepend=0) - wrong
        above = np.cumsum(right) - 0.5 * right
        return float(wrong @ above / n_wrong / n_right)

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve."""
        k = np.arange(1, self.n + 1)
        wrong = self.wrong
        if len(wrong) < self.n:
            wrong = np.interp(k, np.concatenate(([0], self.trusted)), np.concatenate(([0], wrong)))
        return float((wrong / k).mean())

    @property
    def excess_aurc(self) -> float:
        """AURC less that of an ideal ranking of the same decisions (every error last)."""
        n_wrong = int(self.wrong[-1])
        k = np.arange(self.n - n_wrong + 1, self.n + 1)
        return self.aurc - float((np.arange(1, n_wrong + 1) / k).sum() / self.n)


def risk_coverage(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> RiskCoverage:
    """Risk and coverage of every threshold (El-Yaniv and Wiener 2010).

    Args:
        confidence: [n], any scale, higher is surer.
        correct: [n], booleans or zeros and ones.

    Raises:
        InvalidData: NaN, lengths that differ, no rows.
    """
    score = check_scores(confidence)
    return rank(score, check_correct(correct, len(score)))


def rank(score: FloatArray, correct: BoolArray) -> RiskCoverage:
    """`risk_coverage` for arrays that were checked already."""
    order = np.argsort(score)[::-1]
    ranked = score[order]
    last: IntArray = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    wrong = np.cumsum(~correct[order], dtype=np.int64)
    return RiskCoverage(ranked[last], last + 1, wrong[last], len(score))


def auroc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the ROC curve of confidence as a predictor of correctness; NaN if all are right or all wrong.

    Args and errors as for `risk_coverage`.
    """
    return risk_coverage(confidence, correct).auroc


def aurc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the risk-coverage curve: mean risk over coverages 1/n, ..., n/n (Geifman et al. 2019).

    Args and errors as for `risk_coverage`.
    """
    return risk_coverage(confidence, correct).aurc


def excess_aurc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """AURC less the least that any ranking of these decisions could have (Geifman et al. 2019).

    Args and errors as for `risk_coverage`.
    """
    return risk_coverage(confidence, correct).excess_aurc
