"""What a perfectly calibrated model would score: the yardstick for every calibration error."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demur.calibration.arrays import FloatArray, check_probabilities, check_unit
from demur.calibration.calibration_error import Strategy, bin_edges
from demur.calibration.errors import InvalidParameter

# Decisions of nearly equal confidence are simulated together; their spread adds less than 1e-7 to any variance.
_CELL_WIDTH = 1e-3


@dataclass(frozen=True)
class NoiseBand:
    """Where the expected calibration error of a perfectly calibrated model falls.

    Attributes:
        mean: its mean, the noise floor.
        lower, upper: the central interval that holds it with probability `level`.
        level: as asked for.
    """

    mean: float
    lower: float
    upper: float
    level: float


def ece_noise_band(
    probabilities: npt.ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    level: float = 0.95,
    n_simulations: int = 1000,
    seed: int = 0,
) -> NoiseBand:
    """Expected calibration error of a model with exactly these confidences whose every confidence is true.

    Labels are drawn from the confidences (consistency resampling, Broecker and Smith 2007). An observed error inside
    the band is no evidence of miscalibration. The labels play no part.

    Args:
        probabilities: [n, K], rows sum to one.
        n_bins, strategy: as for `expected_calibration_error`.
        level: coverage of the interval, in (0, 1).
        n_simulations: label sets drawn.
        seed: of the draws; the same seed and rows in any order give the same band.

    Raises:
        InvalidData: a row that is not a distribution.
        InvalidParameter: an argument out of its range.
    """
    confidence = np.minimum(check_probabilities(probabilities).max(axis=1), 1.0)
    return simulate_band(confidence, n_bins, strategy, level, n_simulations, seed)


def confidence_noise_band(
    confidence: npt.ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    level: float = 0.95,
    n_simulations: int = 1000,
    seed: int = 0,
) -> NoiseBand:
    """`ece_noise_band` for any confidence, such as `p_correct`: [n] in [0, 1]."""
    return simulate_band(check_unit(confidence, "confidence"), n_bins, strategy, level, n_simulations, seed)


def simulate_band(
    confidence: FloatArray, n_bins: int, strategy: Strategy, level: float, n_simulations: int, seed: int
) -> NoiseBand:
    """`confidence_noise_band` for an array that was checked already."""
    check_level(level)
    if n_simulations < 1:
        raise InvalidParameter(f"n_simulations must be at least 1, not {n_simulations}")
    bins = np.searchsorted(bin_edges(confidence, n_bins, strategy)[1:-1], confidence)
    n_cells = int(1.0 / _CELL_WIDTH) + 1
    key = bins * n_cells + (confidence / _CELL_WIDTH).astype(np.int64)
    count = np.bincount(key, minlength=n_bins * n_cells)
    cells = np.flatnonzero(count)
    total = np.bincount(key, confidence, minlength=n_bins * n_cells)[cells]
    count = count[cells]
    first = np.flatnonzero(np.diff(cells // n_cells, prepend=-1))
    right = np.random.default_rng(seed).binomial(count, np.minimum(total / count, 1.0), (n_simulations, len(cells)))
    gaps = np.add.reduceat(right - total, first, axis=1)
    errors = np.abs(gaps).sum(axis=1) / len(confidence)
    lower, upper = np.quantile(errors, [0.5 - level / 2, 0.5 + level / 2])
    return NoiseBand(float(errors.mean()), float(lower), float(upper), level)


def check_level(level: float) -> None:
    """Raise `InvalidParameter` unless `level` is in (0, 1)."""
    if not 0.0 < level < 1.0:
        raise InvalidParameter(f"level must be in (0, 1), not {level}")
