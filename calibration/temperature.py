"""Identity and temperature: the two calibrators without a shape of their own."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from demur.calibration.arrays import FloatArray, IntArray
from demur.calibration.calibrator import Calibrator

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
# Rows per pass: small enough that a pass stays in the processor's cache.
_BLOCK = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class Identity(Calibrator):
    """Leaves the model's own probabilities alone (normalised over the options). Needs no fit and no labels."""

    kind = "identity"
    moves_decision = False
    needs_fixed_options = False

    def estimate(self, _logp: FloatArray, _labels: IntArray, /) -> tuple[Self, tuple[str, ...]]:
        """Learn nothing."""
        return self, ()

    def apply(self, logp: FloatArray) -> FloatArray:
        """Exponentiate."""
        return np.exp(logp)

    def n_parameters(self, _: int, /) -> int:
        """None."""
        return 0

    def _require_fit(self, n_options: int) -> None:
        """There is nothing to fit."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TemperatureScaling(Calibrator):
    """softmax(logprobs / temperature), temperature by maximum likelihood (Guo et al. 2017).

    The likelihood is convex in the inverse temperature; Newton's method inside a bracket finds its minimum to
    machine precision, in [0.01, 100].

    Attributes:
        temperature: above one where the model is overconfident.
    """

    kind = "temperature"
    moves_decision = False
    needs_fixed_options = False

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    def estimate(self, logp: FloatArray, labels: IntArray, /) -> tuple[Self, tuple[str, ...]]:
        """Fit the inverse temperature."""
        inverse, bound = fit_inverse_temperature(logp, labels)
        notes = (f"the temperature is at its bound of {1.0 / inverse:g}",) if bound else ()
        return replace(self, temperature=1.0 / inverse), notes

    def apply(self, logp: FloatArray) -> FloatArray:
        """Soften or sharpen."""
        return softmax(logp * (1.0 / self.temperature))

    def n_parameters(self, _: int, /) -> int:
        """One."""
        return 1


def softmax(logits: FloatArray) -> FloatArray:
    """Row-wise softmax of [n, K] finite logits; overwrites its argument."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def fit_inverse_temperature(logp: FloatArray, labels: IntArray) -> tuple[float, bool]:
    """Return the inverse temperature of least NLL and whether it is at a bound."""
    z = logp - logp.max(axis=1, keepdims=True)
    target = float(z[np.arange(len(z)), labels].mean())
    low, high = 1.0 / MAX_TEMPERATURE, 1.0 / MIN_TEMPERATURE
    at_low = at_high = False
    inverse, change = 1.0, np.inf
    for _ in range(100):
        mean, curvature = _moments(z, inverse)
        slope = mean - target
        if slope > 0.0:
            if inverse <= low and not at_low:
                return inverse, True
            high, at_high = inverse, True
        else:
            if inverse >= high and not at_high:
                return inverse, True
            low, at_low = inverse, True
        step = inverse - slope / curvature if curvature > 0.0 else np.nan
        # Newton's steps shrink quadratically; once small steps stop shrinking they are rounding noise.
        if abs(step - inverse) <= 1e-13 * inverse or 0.5 * change < abs(step - inverse) < 1e-6 * inverse:
            return inverse, False
        change = abs(step - inverse)
        if not low < step < high:
            # Outside a bound never tried: try the bound itself; outside the bracket: bisect on the log scale.
            if step <= low and not at_low:
                step = low
            elif step >= high and not at_high:
                step = high
            else:
                step = float(np.sqrt(low * high))
        inverse = float(step)
    return inverse, False


def _moments(z: FloatArray, inverse: float) -> tuple[float, float]:
    """Mean over rows of the mean and of the variance of z under softmax(inverse * z)."""
    n, k = z.shape
    ones = np.ones(k)
    mean = variance = 0.0
    for start in range(0, n, _BLOCK):
        block = z[start : start + _BLOCK]
        weight = np.exp(block * inverse)
        total = weight @ ones
        weight *= block
        first = (weight @ ones) / total
        weight *= block
        mean += float(first.sum())
        variance += float(((weight @ ones) / total - first * first).sum())
    return mean / n, variance / n
