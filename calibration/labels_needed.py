"""How many labels more it would take, or that no number will do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from demur.calibration.certificate import Certificate
from demur.calibration.errors import CertificateError
from demur.calibration.multiple_testing import fewest_rows, most_errors
from demur.calibration.thresholds import MAIN_SHARE, sharpest_size
from scipy.stats import binom

# Errors are estimated only where so many rows are trusted; fewer say nothing.
ENOUGH_ROWS = 20


@dataclass(frozen=True)
class LabelsNeeded:
    """`further` labels to a certificate with chance `power`, 0 if there is one, None if no number is foreseen."""

    further: int | None
    power: float
    estimated_error: float | None
    explanation: str


def labels_needed(certificate: Certificate, *, power: float = 0.8) -> LabelsNeeded:
    """Estimate from a certificate's evidence how many further labels would certify some threshold.

    An estimate, not a promise: it takes the error seen at each tested threshold, `(k + 1/2)/(n + 1)`, for the truth,
    and asks for the smallest sample of which the main start's test rejects with chance `power` there.

    Raises CertificateError if `power` is not in (0, 1).
    """
    if not 0.0 < power < 1.0:
        raise CertificateError(f"power is {power!r}, but must lie strictly between 0 and 1")
    if certificate.thresholds:
        return LabelsNeeded(0, power, None, "a threshold is certified")
    alpha, level, n = certificate.alpha, MAIN_SHARE * certificate.delta_spent, certificate.n
    seen = [t for t in certificate.evidence if t.trusted >= ENOUGH_ROWS]
    if not seen:
        overall = (certificate.errors + 0.5) / (n + 1)
        further = max(4 * fewest_rows(alpha, level) - n, 1)
        return LabelsNeeded(further, power, overall, f"too few rows to test anything: about {further} labels more")
    trusted = np.array([t.trusted for t in seen])
    risk = (np.array([t.errors for t in seen]) + 0.5) / (trusted + 1)
    lowest = float(risk.min())
    if lowest >= alpha:
        return LabelsNeeded(
            None,
            power,
            lowest,
            f"no number will do: the estimated error is above alpha at every threshold, {lowest:.3f} at best",
        )
    totals = [
        _rows_to_reject(float(r), alpha, level, power) * n / float(m)
        for r, m in zip(risk, trusted, strict=True)
        if r < alpha
    ]
    further = max(int(np.ceil(min(totals))) - n, 1)
    return LabelsNeeded(further, power, lowest, f"about {further} labels more for a {power:.0%} chance")


def _rows_to_reject(risk: float, alpha: float, level: float, power: float) -> float:
    """Smallest size, among those that the chain tests, at which `risk` is rejected with chance `power`."""
    low, high = 0, 1
    while _power(high, risk, alpha, level) < power:
        low, high = high, 2 * high
        if high > 10_000_000:
            return float("inf")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, risk, alpha, level) >= power else (middle, high)
    return float(sharpest_size(np.array([high]), alpha, level)[0])


def _power(errors: int, risk: float, alpha: float, level: float) -> float:
    size = sharpest_size(np.array([errors]), alpha, level)
    return float(binom.cdf(most_errors(size, alpha, level), size, risk)[0])
