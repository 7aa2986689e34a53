"""Smooth calibration error: a kernel in place of bins, with a bandwidth that the data choose."""

import numpy as np
import numpy.typing as npt
from scipy import fft

from demur.calibration.arrays import BoolArray, FloatArray, check_confidence, check_decisions

_GRID = 8192


def smooth_calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """SmoothECE of the most probable option's confidence (Blasiok and Nakkiran 2023, definition 5).

    Residuals (correct - confidence) are smoothed over confidence by a Gaussian kernel reflected at 0 and 1; the
    error is the integral of their absolute value at the bandwidth that equals the error itself. It has no bins
    to choose and moves continuously with the data.

    Args:
        probabilities: [n, K], rows sum to one.
        labels: [n], gold option indices.

    Raises:
        InvalidData: a row that is not a distribution, a label that is not an option, lengths that differ.
    """
    decisions = check_decisions(probabilities, labels)
    return smooth_error(np.minimum(decisions.confidence, 1.0), decisions.correct)


def smooth_confidence_error(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """`smooth_calibration_error` of any confidence: [n] in [0, 1], against [n] booleans; raises `InvalidData`."""
    return smooth_error(*check_confidence(confidence, correct))


def smooth_error(confidence: FloatArray, correct: BoolArray) -> float:
    """`smooth_confidence_error` for arrays that were checked already."""
    residuals = _spread(confidence, correct - confidence)
    # A reflected Gaussian is diagonal under the cosine transform, so each bandwidth costs one inverse transform.
    spectrum = fft.dct(residuals, type=2, norm="ortho")
    frequency = np.pi * np.arange(_GRID)

    def error_at(bandwidth: float) -> float:
        return float(
            np.abs(fft.idct(spectrum * np.exp(-0.5 * (frequency * bandwidth) ** 2), type=2, norm="ortho")).sum()
        )

    # error_at falls as the bandwidth grows, so it crosses the diagonal once.
    low, high = 0.0, 1.0
    while high - low > 1e-10:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error_at(middle) > middle else (low, middle)
    return 0.5 * (low + high)


def _spread(confidence: FloatArray, residual: FloatArray) -> FloatArray:
    """Mean residual mass on the grid; each value is shared by its two nearest cell centres."""
    position = np.clip(confidence * _GRID - 0.5, 0.0, _GRID - 1.0)
    left = np.minimum(position.astype(np.int64), _GRID - 2)
    weight = position - left
    mass = np.bincount(left, residual * (1.0 - weight), minlength=_GRID)
    mass += np.bincount(left + 1, residual * weight, minlength=_GRID)
    return mass / len(confidence)
