"""Calibrators of the decision's confidence that are steps or pieces: isotonic and scaling-binning."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from scipy import optimize

from demur.calibration.arrays import BoolArray, FloatArray
from demur.calibration.stored import no_numbers
from demur.calibration.top_label import TopLabelCalibrator, fit_platt, platt


@dataclass(frozen=True, eq=False, kw_only=True)
class IsotonicCalibration(TopLabelCalibrator):
    """The best non-decreasing map of confidence to accuracy (Zadrozny and Elkan 2002), by pooling violators.

    Linear between the pooled blocks' edges and flat outside, over log-odds, where confidences near one are still apart.
    Blocks of only right or only wrong decisions are held 1/(n + 2) away from certainty (the rule of succession).

    Attributes:
        rest_temperature: of the other options' shares.
        log_odds: [m], edges of the blocks, increasing.
        accuracy: [m], calibrated probability there, non-decreasing.
    """

    kind = "isotonic"

    log_odds: FloatArray = field(default_factory=no_numbers)
    accuracy: FloatArray = field(default_factory=no_numbers)

    def estimate_confidence(
        self, log_top: FloatArray, log_rest: FloatArray, correct: BoolArray
    ) -> tuple[Self, tuple[str, ...]]:
        """Pool adjacent violators; equal confidences enter as one point with their mean."""
        points, index, counts = np.unique(_rounded(log_top - log_rest), return_inverse=True, return_counts=True)
        means = np.bincount(index, correct) / counts
        pooled = optimize.isotonic_regression(means, weights=counts).x
        step = np.append(True, np.diff(pooled) > 0.0)
        edges = step | np.append(step[1:], True)
        floor = 1.0 / (len(correct) + 2.0)
        return replace(self, log_odds=points[edges], accuracy=np.clip(pooled[edges], floor, 1.0 - floor)), ()

    def map_confidence(self, log_top: FloatArray, log_rest: FloatArray) -> FloatArray:
        """Interpolate."""
        return np.interp(_rounded(log_top - log_rest), self.log_odds, self.accuracy)

    def n_parameters(self, _: int, /) -> int:
        """As many as there are blocks, some cube root of n; fifty stands for "many"."""
        return 50


@dataclass(frozen=True, eq=False, kw_only=True)
class ScalingBinning(TopLabelCalibrator):
    """Platt's sigmoid, averaged inside equal-count bins (Kumar, Liang and Ma 2019).

    Its output takes at most `n_bins` values, so its calibration error can be measured without bias. As in the
    authors' experiments the same rows fit the sigmoid, place the bins and give their means.

    Attributes:
        rest_temperature: of the other options' shares.
        n_bins: bins asked for; fewer where there are less than twenty rows for each, or equal confidences.
        edges: [m - 1], log-odds between the bins.
        values: [m], calibrated probability of each bin.
    """

    kind = "scaling_binning"

    n_bins: int = 10
    edges: FloatArray = field(default_factory=no_numbers)
    values: FloatArray = field(default_factory=no_numbers)

    def estimate_confidence(
        self, log_top: FloatArray, log_rest: FloatArray, correct: BoolArray
    ) -> tuple[Self, tuple[str, ...]]:
        """Fit the sigmoid, then bin it."""
        log_odds = log_top - log_rest
        scaled = platt(log_odds, *fit_platt(log_odds, correct))
        n_bins = max(1, min(self.n_bins, len(correct) // 20))
        edges = np.unique(np.quantile(log_odds, np.arange(1, n_bins) / n_bins))
        cells = np.searchsorted(edges, log_odds)
        filled, cells = np.unique(cells, return_inverse=True)
        values = np.bincount(cells, scaled) / np.bincount(cells)
        return replace(self, edges=edges[filled[:-1]], values=values), ()

    def map_confidence(self, log_top: FloatArray, log_rest: FloatArray) -> FloatArray:
        """Look the bin up."""
        mapped: FloatArray = self.values[np.searchsorted(self.edges, log_top - log_rest)]
        return mapped

    def n_parameters(self, n_options: int, /) -> int:
        """As many as its sigmoid; the bins only coarsen it."""
        return 2 + (n_options > 2)


def _rounded(log_odds: FloatArray) -> FloatArray:
    """Equal confidences that were summed in another order differ in the last bits; a step must not part them."""
    return np.round(log_odds, 9)
