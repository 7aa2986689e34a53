"""Logistic regression in a few dimensions by Newton's method, to machine precision."""

import numpy as np
from scipy import special

from demur.calibration.arrays import FloatArray


def fit_logistic(
    features: FloatArray,
    targets: FloatArray,
    *,
    offset: FloatArray | float = 0.0,
    centre: FloatArray | None = None,
    prior_strength: float = 0.0,
) -> FloatArray:
    """Return weights [d] of least mean log-loss plus prior_strength / 2n * |weights - centre|^2.

    Args:
        features: [n, d], including a column of ones where a bias is wanted.
        targets: [n], in [0, 1]; need not be zeros and ones.
        offset: [n] or scalar, added to the log-odds with a fixed weight of one.
        centre: [d], where the prior sits and the search starts; zeros if not given.
        prior_strength: precision of the Gaussian prior, in labels' worth of information.
    """
    n, d = features.shape
    centre = np.zeros(d) if centre is None else centre
    ridge = prior_strength / n

    def loss(w: FloatArray) -> float:
        z = features @ w + offset
        away = w - centre
        return float((np.logaddexp(0.0, z) - targets * z).mean() + 0.5 * ridge * (away @ away))

    weights, best = centre, loss(centre)
    for _ in range(100):
        p = special.expit(features @ weights + offset)
        gradient = features.T @ (p - targets) / n + ridge * (weights - centre)
        hessian = (features.T * (p * (1.0 - p))) @ features / n
        # The jitter decides only where the data do not: columns that are proportional, or a separable sample.
        hessian[np.diag_indices(d)] += ridge + 1e-12
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while (value := loss(weights - scale * step)) > best + 1e-15 and scale > 1e-6:
            scale *= 0.5
        if scale <= 1e-6:
            break
        weights, best = weights - scale * step, value
        if np.abs(step).max() <= 1e-12 * (1.0 + np.abs(weights).max()) or np.abs(weights).max() > 1e3:
            break
    return weights
