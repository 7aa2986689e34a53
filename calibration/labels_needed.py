"""How many labels more it would take, or that no number will do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from demur.calibration.certificate import Certificate
from demur.calibration.errors import CertificateError
from demur.calibration.multiple_testing import most_errors
from demur.calibration.thresholds import plan

# Errors are estimated only where so many rows are trusted; fewer say nothing.
ENOUGH_ROWS = 20
_GROWTH = 1.1
_MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class LabelsNeeded:
    """`further` labels to a certificate with chance `power`, 0 if there is one, None if no number is foreseen.

    `estimated_error` is the lowest at any tested threshold (of all rows, if too few were there to test).
    """

    further: int | None
    power: float
    estimated_error: float | None
    explanation: str


def labels_needed(certificate: Certificate, *, power: float = 0.8) -> LabelsNeeded:
    """Estimate from a certificate's evidence how many further labels would certify some threshold.

    An estimate, not a promise: it takes the error seen at each tested coverage, `(k + 1/2)/(n + 1)`, for the truth,
    and asks for the smallest sample of which one of the planned starts passes with chance `power`.

    Raises CertificateError if `power` is not in (0, 1).
    """
    if not 0.0 < power < 1.0:
        raise CertificateError(f"power is {power!r}, but must lie strictly between 0 and 1")
    if certificate.thresholds:
        return LabelsNeeded(0, power, None, "a threshold is certified")
    n = certificate.n
    seen = [(t.trusted, t.errors) for t in certificate.evidence if t.trusted >= ENOUGH_ROWS]
    trusted, errors = np.array(seen or [(n, certificate.errors)]).T
    coverage, risk = trusted / n, (errors + 0.5) / (trusted + 1)
    lowest = float(risk.min())
    if seen and lowest >= certificate.alpha:
        why = f"no number will do: the estimated error is above alpha at every threshold, {lowest:.3f} at best"
        return LabelsNeeded(None, power, lowest, why)
    total = float(n)
    while total < _MOST_ROWS:
        total *= _GROWTH
        if _power(round(total), certificate, coverage, risk) >= power:
            further = round(total) - n
            return LabelsNeeded(further, power, lowest, f"about {further} labels more for a {power:.0%} chance")
    why = f"no number up to {_MOST_ROWS:,} is foreseen to do: the estimated error is {lowest:.3f} at best"
    return LabelsNeeded(None, power, lowest, why)


def _power(rows: int, certificate: Certificate, coverage: NDArray[np.float64], risk: NDArray[np.float64]) -> float:
    """Chance that the better of the starts passes on so many rows."""
    planned = plan(rows, certificate.alpha, certificate.delta_spent)
    starts = planned.shares > 0
    sizes, levels = planned.sizes[starts], planned.shares[starts] * certificate.delta_spent
    best = 0.0
    for size, level in zip(sizes.tolist(), levels.tolist(), strict=True):
        allowed = int(most_errors(size, certificate.alpha, level))
        best = max(best, float(binom.cdf(allowed, size, np.interp(size / rows, coverage, risk))))
    return best
