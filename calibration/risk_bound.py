"""An upper bound on the average risk that holds at all times at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TILTS = -np.geomspace(0.01, 5.0, 16)
_BISECTIONS = 40


def log_tilt_mixture(average_risk: ArrayLike, errors: ArrayLike, audits: ArrayLike) -> NDArray[np.float64]:
    """Log of the average over TILTS of `exp(l k) / (1 + m (e^l - 1))^n`; m, k and n of shapes that broadcast.

    For a tilt l < 0, `exp(l k) / prod(1 + p_i (e^l - 1))` is a martingale of mean 1 (p_i: the chance of error of
    audit i given what came before). As log(1 + p (e^l - 1)) is concave in p, putting the average m for each p_i makes
    it no larger. So at the true averages this stays below `log(1/delta)` for ever with chance 1 - delta (Ville),
    whatever the risk does (a mixture in the sense of Howard et al., arXiv:1808.03204).
    """
    m, k, n = (np.asarray(x, dtype=np.float64)[..., None] for x in (average_risk, errors, audits))
    logs = TILTS * k - n * np.log1p(m * np.expm1(TILTS))
    return np.asarray(np.logaddexp.reduce(logs, axis=-1) - np.log(TILTS.size), dtype=np.float64)


def average_risk_upper_bound(errors: ArrayLike, audits: ArrayLike, delta: float) -> NDArray[np.float64]:
    """Upper bound on the average, over the audits so far, of each audit's chance of error given what came before.

    Parameters
    ----------
    errors, audits : integer counts of any one shape.
    delta : chance that the bound is ever below the average, at any time.

    The mixture above grows with m, so the averages it does not exclude are those below one number, found by
    bisection. Without audits the bound is 1.
    """
    k, n = np.broadcast_arrays(np.asarray(errors, dtype=np.float64), np.asarray(audits, dtype=np.float64))
    low, high = np.where(n > 0, k / np.maximum(n, 1), 1.0), np.ones(k.shape)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        excluded = log_tilt_mixture(middle, k, n) >= -np.log(delta)
        low, high = np.where(excluded, low, middle), np.where(excluded, middle, high)
    return high
