"""The grid of scores: the one place that says when a score reaches a threshold.

Engines repeat a score to about 1e-7, so scores are compared on a grid of 1e-6, and thresholds lie midway between two
grid points. Fitting and serving call the same functions; a verdict then changes only if noise moves the score across
half a grid step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

DIGITS = 6
STEP = 10.0**-DIGITS
_STEPS = 10.0**DIGITS
_EXACT = 2.0**52


def on_grid(score: ArrayLike) -> NDArray[np.float64]:
    """Scores of any shape, rounded to the grid (six decimals)."""
    return np.asarray(np.round(np.asarray(score, dtype=np.float64), DIGITS), dtype=np.float64)


def is_trusted(score: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Whether each score reaches `threshold` on the grid; the same shape as `score`."""
    return np.asarray(on_grid(score) >= threshold)


def reaches(score: float, threshold: float) -> bool:
    """`is_trusted` of one number: the same arithmetic without arrays, for serving. NaN reaches nothing."""
    scaled = score * _STEPS
    if not -_EXACT < scaled < _EXACT:  # beyond it every number is on the grid
        return score >= threshold
    return round(scaled) / _STEPS >= threshold


def on_grid_one(score: float) -> float:
    """`on_grid` of one number: the same arithmetic without arrays, for serving. NaN and infinities stay."""
    scaled = score * _STEPS
    return round(scaled) / _STEPS if -_EXACT < scaled < _EXACT else score


def threshold_below(score: ArrayLike) -> NDArray[np.float64]:
    """The loosest threshold that a score of this value still reaches: half a step below its grid point."""
    return np.round(on_grid(score) - STEP / 2, DIGITS + 1)


def threshold_above(score: ArrayLike) -> NDArray[np.float64]:
    """The strictest threshold that a score of this value no longer reaches: half a step above its grid point."""
    return np.round(on_grid(score) + STEP / 2, DIGITS + 1)
