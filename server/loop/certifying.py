"""What audits certify: all traffic, or each of its slices, in one attempt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from demur.calibration import Certificate, VerdictCertificates, certify_slice_verdicts, certify_verdicts
from demur.server.calibrated import Calibrated
from demur.server.certificate_file import Issued
from demur.server.loop.evidence import Evidence
from demur.server.store.records import Attempt


@dataclass(frozen=True, slots=True)
class Terms:
    """What is promised: as the certificate that is renewed did."""

    alpha: float
    beta: float
    delta: float
    valid_for: timedelta | None

    @classmethod
    def of(cls, calibrated: Calibrated) -> "Terms":
        """Those of the certificates that a bundle has; the usual ones without any."""
        guarantee = calibrated.guarantee
        parts = () if guarantee is None else (guarantee, *guarantee.slices.values())
        for part in parts:
            if part.trusted is not None:
                trusted, rest = part.trusted, part.not_deferred
                valid_for = None if trusted.expires_at is None else trusted.expires_at - trusted.issued_at
                # Trust and answers have half of delta each.
                return cls(trusted.alpha, 0.30 if rest is None else rest.alpha, 2 * trusted.delta, valid_for)
        return cls(0.05, 0.30, 0.05, timedelta(days=90))

    @property
    def fewest(self) -> int:
        """Rows without which no attempt can succeed, so that none is spent: a first attempt, all of them right."""
        return int(np.ceil(np.log(self.delta / 4) / np.log1p(-self.alpha)))


def usable(calibrated: Calibrated, rows: Evidence, mass: float) -> list[int]:
    """Rows that a certificate would speak of: not deferred for their label mass, and of a slice that is known."""
    guarantee = calibrated.guarantee
    return [
        i
        for i, reading in enumerate(rows.readings())
        if reading.label_mass >= mass and (guarantee is None or guarantee.known(rows.audits[i].decision.slice))
    ]


def slices_of(calibrated: Calibrated, rows: Evidence, indices: Sequence[int]) -> list[str | None]:
    """The slice of each usable row; None for all of them where traffic is not parted."""
    parted = calibrated.guarantee is not None and calibrated.guarantee.slice_by is not None
    return [rows.audits[i].decision.slice if parted else None for i in indices]


def certify(
    calibrated: Calibrated, rows: Evidence, indices: list[int], terms: Terms, attempt: Attempt, now: datetime
) -> Issued:
    """Both chains of every slice that has audits, or of all traffic. One attempt's delta is shared by all of them."""
    readings, labels, slices = rows.readings(), rows.labels(), slices_of(calibrated, rows, indices)
    applied = [calibrated.apply(readings[i]) for i in indices]
    split = calibrated.score_name == "p_correct" or calibrated.calibrator.moves_decision
    score = np.array([one.score for one in applied])
    # A label that never came counts as an error.
    correct = np.array([one.index == labels[i] for one, i in zip(applied, indices, strict=True)])
    promise: dict[str, Any] = {
        "alpha": terms.alpha,
        "beta": terms.beta,
        "delta": terms.delta,
        "route": "split" if split else "label_free",
        "score_name": calibrated.score_name,
        "attempt": attempt.number,
        "issued_at": now,
        "valid_for": terms.valid_for,
    }
    if slices[0] is None:
        return {None: certify_verdicts(score, correct, **promise)}
    issued: dict[str | None, VerdictCertificates] = {}
    issued.update(certify_slice_verdicts(score, correct, np.array(slices, dtype=np.str_), **promise))
    return issued


def beside(calibrated: Calibrated, issued: Issued, *, policy_hash: str | None) -> Issued:
    """What was issued, and for slices that gained no trust the certificate that they had.

    Those trust what they did only under the policy that they were certified for, and if the candidate trusts the same
    set (None: it does not); otherwise they trust nothing any more.
    """
    guarantee = calibrated.guarantee
    if guarantee is None or guarantee.slice_by is None:
        return issued
    stay = guarantee.policy_hash == policy_hash
    merged = dict(issued)
    for value, part in guarantee.slices.items():
        if part.trusted is None or part.not_deferred is None:
            continue
        if stay and (value not in issued or issued[value].trusted.threshold is None):
            merged[value] = VerdictCertificates(part.trusted, part.not_deferred)
        elif value not in issued:
            merged[value] = VerdictCertificates(_nothing(part.trusted), _nothing(part.not_deferred))
    return merged


def _nothing(certificate: Certificate) -> Certificate:
    return replace(certificate, thresholds=(), evidence=())
