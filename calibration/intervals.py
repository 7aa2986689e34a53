"""Confidence intervals: exact ones for a share, bootstrap ones for metrics that the bootstrap suits."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from demur.calibration.arrays import BoolArray, Decisions, FloatArray, check_decisions
from demur.calibration.errors import InvalidParameter, NoValidInterval
from demur.calibration.noise_band import check_level
from demur.calibration.proper_scores import row_brier, row_nll
from demur.calibration.selective import rank

BootstrapMetric = Literal["accuracy", "nll", "brier", "auroc", "aurc"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval at confidence `level`."""

    estimate: float
    lower: float
    upper: float
    level: float


def binomial_interval(
    successes: npt.ArrayLike, trials: npt.ArrayLike, *, level: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Exact two-sided interval for a share (Clopper and Pearson 1934), elementwise.

    Args:
        successes: counts, any shape.
        trials: counts of the same shape, at least `successes`; zero trials give [0, 1].
        level: confidence, in (0, 1).

    Returns:
        Lower and upper ends.

    Raises:
        InvalidParameter: counts that are negative or exceed the trials, a level outside (0, 1).
    """
    check_level(level)
    k, n = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    if not ((k >= 0) & (k <= n)).all():
        raise InvalidParameter("successes must lie between 0 and trials")
    tail = 0.5 * (1.0 - level)
    # A Beta parameter of zero is the end of the range itself; any positive value keeps betaincinv defined there.
    lower = np.where(k > 0, special.betaincinv(np.maximum(k, 1), n - k + 1, tail), 0.0)
    upper = np.where(k < n, special.betaincinv(k + 1, np.maximum(n - k, 1), 1.0 - tail), 1.0)
    return lower, upper


def bootstrap_interval(
    metric: BootstrapMetric,
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval over decisions (Efron 1979).

    Offered for means and rank statistics. Calibration errors are refused: their absolute value makes every resample
    worse than the data, so the interval can miss the estimate itself; see `ece_noise_band`.

    Args:
        metric: "accuracy", "nll", "brier", or "auroc" and "aurc" of the top probability.
        probabilities: [n, K], rows sum to one.
        labels: [n], gold option indices.
        level: confidence, in (0, 1).
        n_resamples: bootstrap samples; those in which `auroc` is undefined are left out.
        seed: of the draws; the same seed and rows in any order give the same interval.

    Raises:
        InvalidData: a row that is not a distribution, a label that is not an option, lengths that differ.
        InvalidParameter: an argument out of its range.
        NoValidInterval: any other metric, or a ranking metric where all decisions are right or all wrong.
    """
    check_level(level)
    if n_resamples < 1:
        raise InvalidParameter(f"n_resamples must be at least 1, not {n_resamples}")
    if metric not in get_args(BootstrapMetric):
        raise NoValidInterval(f"no valid bootstrap interval for {metric!r}; choose from {get_args(BootstrapMetric)}")
    decisions = check_decisions(probabilities, labels)
    rng = np.random.default_rng(seed)
    if metric in ("auroc", "aurc"):
        if decisions.correct.all() or not decisions.correct.any():
            raise NoValidInterval(f"{metric} needs right and wrong decisions to have an interval")
        estimate, draws = _ranking_draws(decisions.confidence, decisions.correct, metric == "auroc", n_resamples, rng)
    else:
        estimate, draws = _mean_draws(_row_values(metric, decisions), n_resamples, rng)
    lower, upper = np.nanquantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(estimate, float(lower), float(upper), level)


def _row_values(metric: BootstrapMetric, decisions: Decisions) -> FloatArray:
    if metric == "nll":
        return row_nll(decisions)
    if metric == "brier":
        return row_brier(decisions)
    return decisions.correct.astype(np.float64)


def _mean_draws(values: FloatArray, n_resamples: int, rng: np.random.Generator) -> tuple[float, FloatArray]:
    # Sorted, so that the draws do not depend on the order of the rows.
    values = np.sort(values)
    n = len(values)
    draws = np.array([values[rng.integers(n, size=n)].mean() for _ in range(n_resamples)])
    return float(values.mean()), draws


def _ranking_draws(
    confidence: FloatArray, correct: BoolArray, use_auroc: bool, n_resamples: int, rng: np.random.Generator
) -> tuple[float, FloatArray]:
    order = np.lexsort((correct, confidence))
    confidence, correct = confidence[order], correct[order]
    n = len(confidence)

    def statistic(rows: npt.NDArray[np.int64] | slice) -> float:
        curve = rank(confidence[rows], correct[rows])
        return curve.auroc if use_auroc else curve.aurc

    draws = np.array([statistic(rng.integers(n, size=n)) for _ in range(n_resamples)])
    return statistic(slice(None)), draws
