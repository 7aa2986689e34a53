"""Binned calibration errors of the decision's confidence, all read off one set of bins."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from demur.calibration.arrays import BoolArray, FloatArray, IntArray, check_confidence, check_decisions
from demur.calibration.errors import InvalidParameter
from demur.calibration.proper_scores import ClassBins

Strategy = Literal["uniform", "quantile"]


def expected_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, n_bins: int = 15, strategy: Strategy = "uniform"
) -> float:
    """Expected calibration error of the most probable option (Naeini et al. 2015; Guo et al. 2017, eq. 3).

    Biased upwards, most where it is small: compare it with `ece_noise_band`, never with zero.

    Args:
        probabilities: [n, K], rows sum to one.
        labels: [n], gold option indices.
        n_bins: number of bins.
        strategy: "uniform" for bins of equal width, "quantile" for equal count (equal confidences stay together).

    Returns:
        Mean over decisions of |accuracy - mean confidence| of their bin, in [0, 1].

    Raises:
        InvalidData: a row that is not a distribution, a label that is not an option, lengths that differ.
        InvalidParameter: `n_bins` < 1 or an unknown strategy.
    """
    return _bins(probabilities, labels, n_bins, strategy).expected_error


def maximum_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, n_bins: int = 15, strategy: Strategy = "uniform"
) -> float:
    """Largest |accuracy - mean confidence| of any bin (Naeini et al. 2015). A nearly empty bin can decide it.

    Args and errors as for `expected_calibration_error`.
    """
    return _bins(probabilities, labels, n_bins, strategy).maximum_error


def debiased_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, n_bins: int = 15, strategy: Strategy = "quantile"
) -> float:
    """Root-mean-square calibration error less its sampling bias (Kumar, Liang and Ma 2019, definition 5.2).

    The square is unbiased within the bins and may come out negative near calibration; it is cut at zero before the
    root. As an l2 error it weighs large gaps more than the expected calibration error does. Bins of one decision
    carry no estimate of their own noise and are left out.

    Args and errors as for `expected_calibration_error`.
    """
    return _bins(probabilities, labels, n_bins, strategy).debiased_error


def classwise_calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, n_bins: int = 15) -> float:
    """Mean over options of the option's own calibration error in equal-width bins (Nixon et al. 2019, SCE).

    Args and errors as for `expected_calibration_error`.
    """
    return ClassBins.of(check_decisions(probabilities, labels), n_bins).classwise_error()


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """Non-empty bins of confidence, lowest first; each array is [number of non-empty bins].

    Attributes:
        lower, upper: the interval (lower, upper] of each bin.
        counts: decisions in the bin.
        confidence: mean confidence.
        accuracy: share of right decisions.
    """

    lower: FloatArray
    upper: FloatArray
    counts: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def expected_error(self) -> float:
        """Expected calibration error."""
        return float(self.counts @ np.abs(self.accuracy - self.confidence) / self.counts.sum())

    @property
    def maximum_error(self) -> float:
        """Maximum calibration error."""
        return float(np.abs(self.accuracy - self.confidence).max())

    @property
    def debiased_error(self) -> float:
        """Debiased l2 calibration error; NaN if no bin holds two decisions."""
        many = self.counts > 1
        if not many.any():
            return float("nan")
        counts, accuracy = self.counts[many], self.accuracy[many]
        squared = (accuracy - self.confidence[many]) ** 2 - accuracy * (1.0 - accuracy) / (counts - 1)
        return float(np.sqrt(max(0.0, counts @ squared / counts.sum())))


def reliability_bins(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, n_bins: int = 15, strategy: Strategy = "uniform"
) -> ReliabilityBins:
    """Bin any confidence (top probability or `p_correct`) against correctness.

    Args:
        confidence: [n], in [0, 1].
        correct: [n], booleans or zeros and ones.
        n_bins: number of bins.
        strategy: as for `expected_calibration_error`.

    Raises:
        InvalidData: a confidence outside [0, 1], lengths that differ.
        InvalidParameter: as for `expected_calibration_error`.
    """
    return bin_confidence(*check_confidence(confidence, correct), n_bins, strategy)


def bin_edges(confidence: FloatArray, n_bins: int, strategy: Strategy) -> FloatArray:
    """The n_bins + 1 edges of (lower, upper] bins; quantile edges may repeat where confidences are equal."""
    if n_bins < 1:
        raise InvalidParameter(f"n_bins must be at least 1, not {n_bins}")
    steps = np.arange(n_bins + 1) / n_bins
    if strategy == "uniform":
        return steps
    if strategy == "quantile":
        return np.quantile(confidence, steps).astype(np.float64)
    raise InvalidParameter(f"strategy must be 'uniform' or 'quantile', not {strategy!r}")


def bin_confidence(confidence: FloatArray, correct: BoolArray, n_bins: int, strategy: Strategy) -> ReliabilityBins:
    """`reliability_bins` for arrays that were checked already."""
    edges = bin_edges(confidence, n_bins, strategy)
    cells = np.searchsorted(edges[1:-1], confidence)
    counts = np.bincount(cells, minlength=n_bins)
    filled = np.flatnonzero(counts)
    counts = counts[filled]
    return ReliabilityBins(
        lower=edges[filled],
        upper=edges[filled + 1],
        counts=counts,
        confidence=np.bincount(cells, confidence, minlength=n_bins)[filled] / counts,
        accuracy=np.bincount(cells, correct, minlength=n_bins)[filled] / counts,
    )


def _bins(probabilities: npt.ArrayLike, labels: npt.ArrayLike, n_bins: int, strategy: Strategy) -> ReliabilityBins:
    decisions = check_decisions(probabilities, labels)
    # Sums are allowed 1e-3 of rounding, so a lone option may sit a hair above one.
    return bin_confidence(np.minimum(decisions.confidence, 1.0), decisions.correct, n_bins, strategy)
