"""Accuracy and the proper scores: negative log-likelihood, Brier, and Brier's decomposition."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demur.calibration.arrays import EPSILON, Decisions, FloatArray, check_decisions
from demur.calibration.errors import InvalidParameter


def accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of rows whose most probable option is the label.

    Args:
        probabilities: [n, K], rows sum to one.
        labels: [n], gold option indices.

    Raises:
        InvalidData: see `check_probabilities` and `check_labels`.
    """
    return float(check_decisions(probabilities, labels).correct.mean())


def negative_log_likelihood(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean of `-ln p(label)`, in nats; probabilities below machine epsilon count as epsilon (36.04 nats).

    Args and errors as for `accuracy`.
    """
    return float(row_nll(check_decisions(probabilities, labels)).mean())


def brier_score(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean squared distance to the one-hot label summed over options, in [0, 2] (Brier 1950).

    With two options it is twice the score that uses the probability of one option only.
    Args and errors as for `accuracy`.
    """
    return float(row_brier(check_decisions(probabilities, labels)).mean())


def row_nll(decisions: Decisions) -> FloatArray:
    """[n] values whose mean is the negative log-likelihood."""
    p = decisions.probabilities
    loss: FloatArray = -np.log(np.maximum(p[np.arange(len(p)), decisions.labels], EPSILON))
    return loss


def row_brier(decisions: Decisions) -> FloatArray:
    """[n] values whose mean is the Brier score."""
    p = decisions.probabilities
    distances: FloatArray = np.einsum("ij,ij->i", p, p) - 2.0 * p[np.arange(len(p)), decisions.labels] + 1.0
    return distances


@dataclass(frozen=True)
class BrierDecomposition:
    """Brier score = reliability - resolution + uncertainty + within_bin, exactly.

    Attributes:
        reliability: squared distance of bin means to bin frequencies; 0 is calibrated.
        resolution: how far bin frequencies spread from the base rates; more is better.
        uncertainty: variance of the labels themselves.
        within_bin: what binning leaves over (variance less twice the covariance inside bins); small with enough bins.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_bin: float

    @property
    def total(self) -> float:
        """The Brier score."""
        return self.reliability - self.resolution + self.uncertainty + self.within_bin


def brier_decomposition(probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, n_bins: int = 15) -> BrierDecomposition:
    """Murphy's (1973) decomposition over equal-width bins per option, summed over options.

    The within-bin terms of Stephenson, Coelho and Jolliffe (2008) make it exact for continuous forecasts.
    Args and errors as for `accuracy`; `InvalidParameter` if `n_bins` < 1.
    """
    return ClassBins.of(check_decisions(probabilities, labels), n_bins).brier_decomposition()


@dataclass(frozen=True, eq=False)
class ClassBins:
    """Per option and equal-width bin: counts, sums of forecasts and of outcomes, each [K, n_bins].

    One pass serves the Brier decomposition and the classwise calibration error.
    """

    n: int
    counts: FloatArray
    forecasts: FloatArray
    outcomes: FloatArray
    brier: float

    @classmethod
    def of(cls, decisions: Decisions, n_bins: int) -> "ClassBins":
        """Bin every option's probabilities into (lower, upper] intervals."""
        if n_bins < 1:
            raise InvalidParameter(f"n_bins must be at least 1, not {n_bins}")
        p, y = decisions.probabilities, decisions.labels
        n, k = p.shape
        cells = np.searchsorted(np.arange(1, n_bins) / n_bins, p.ravel()).reshape(n, k)
        cells += np.arange(k) * n_bins
        size = k * n_bins
        shape = (k, n_bins)
        return cls(
            n=n,
            counts=np.bincount(cells.ravel(), minlength=size).reshape(shape).astype(np.float64),
            forecasts=np.bincount(cells.ravel(), p.ravel(), minlength=size).reshape(shape).astype(np.float64),
            outcomes=np.bincount(cells[np.arange(n), y], minlength=size).reshape(shape).astype(np.float64),
            brier=float(row_brier(decisions).mean()),
        )

    def classwise_error(self) -> float:
        """Mean over options of each option's expected calibration error."""
        return float(np.abs(self.forecasts - self.outcomes).sum() / (self.n * len(self.counts)))

    def brier_decomposition(self) -> BrierDecomposition:
        """Sum of the options' decompositions."""
        filled = self.counts > 0
        counts, base = self.counts[filled], self.outcomes.sum(axis=1) / self.n
        forecast, outcome = self.forecasts[filled] / counts, self.outcomes[filled] / counts
        option = np.nonzero(filled)[0]
        reliability = float((counts * (forecast - outcome) ** 2).sum() / self.n)
        resolution = float((counts * (outcome - base[option]) ** 2).sum() / self.n)
        uncertainty = float((base * (1.0 - base)).sum())
        return BrierDecomposition(
            reliability, resolution, uncertainty, self.brier - (reliability - resolution + uncertainty)
        )
