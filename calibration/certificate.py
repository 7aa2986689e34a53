"""The certificate: a frozen record of what was promised, from what evidence, under which assumptions, until when."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from operator import index
from typing import Any, Literal, Self

from numpy.typing import ArrayLike, NDArray

from demur.calibration import grid
from demur.calibration.errors import CertificateError

Route = Literal["label_free", "split"]
Claim = Literal["trusted", "not_deferred"]

_SHARED_ASSUMPTIONS = (
    "The certifying rows and the traffic are independent draws from one distribution.",
    "Right means agreement with the labels as given.",
    "The error is an average over the trusted decisions, not one per decision or per group.",
    "The checkpoint was not trained on the certifying rows.",
)
ASSUMPTIONS: dict[Route, tuple[str, ...]] = {
    "label_free": (
        *_SHARED_ASSUMPTIONS,
        "Neither the score nor the decision was fitted or chosen on the certifying labels.",
    ),
    "split": (
        *_SHARED_ASSUMPTIONS,
        "Whatever was fitted or chosen used other rows than the certifying ones, and the split was drawn at random.",
    ),
}


@dataclass(frozen=True)
class TestedThreshold:
    """One tested threshold: rows trusted, errors among them, its p-value and the level it was held against."""

    __test__ = False

    threshold: float
    trusted: int
    errors: int
    p_value: float
    level: float
    certified: bool


@dataclass(frozen=True)
class Certificate:
    """Among decisions with `on_grid(score) >= t`, for every listed `t` together, the error is at most `alpha`.

    `delta` bounds the chance that the procedure issues a certificate of which any listed threshold is false. The list
    is complete: a stricter threshold that is not on it is not certified, since the error need not fall with the score.
    """

    alpha: float
    delta: float
    claim: Claim
    score: str
    thresholds: tuple[float, ...]
    n: int
    errors: int
    unlabelled: int
    route: Route
    attempt: int | None
    delta_spent: float
    evidence: tuple[TestedThreshold, ...]
    assumptions: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime | None

    @property
    def threshold(self) -> float | None:
        """The loosest certified threshold, or None."""
        return min(self.thresholds, default=None)

    @property
    def certified_coverage(self) -> float:
        """Share of the certifying rows that the loosest certified threshold trusts."""
        return max((t.trusted for t in self.evidence if t.certified), default=0) / self.n

    def covers(self, threshold: float | None) -> bool:
        """Whether a policy that trusts from `threshold` on carries this certificate: only if it is on the list."""
        return threshold is not None and threshold in self.thresholds

    def trusts(self, score: ArrayLike) -> NDArray[Any]:
        """Which scores the loosest certified threshold trusts (none without one); the same shape as `score`."""
        threshold = self.threshold
        return grid.is_trusted(score, float("inf") if threshold is None else threshold)

    def expired(self, now: datetime) -> bool:
        """Whether `now` (with a time zone) is at or past the expiry."""
        return self.expires_at is not None and now >= self.expires_at

    def to_json(self) -> str:
        """All of it, as one JSON object; times in ISO 8601."""
        record = asdict(self)
        record["issued_at"] = self.issued_at.isoformat()
        record["expires_at"] = None if self.expires_at is None else self.expires_at.isoformat()
        return json.dumps(record, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote. CertificateError if a field is missing, unknown or of the wrong kind."""
        try:
            record = json.loads(text)
            if not isinstance(record, dict) or set(record) != {f.name for f in fields(cls)}:
                raise CertificateError("not a certificate: its fields are not the ones expected")
            for name in ("alpha", "delta", "delta_spent"):
                record[name] = float(record[name])
            for name in ("n", "errors", "unlabelled"):
                record[name] = index(record[name])
            record["thresholds"] = tuple(float(t) for t in record["thresholds"])
            record["evidence"] = tuple(TestedThreshold(**t) for t in record["evidence"])
            record["assumptions"] = tuple(record["assumptions"])
            record["issued_at"] = datetime.fromisoformat(record["issued_at"])
            if record["expires_at"] is not None:
                record["expires_at"] = datetime.fromisoformat(record["expires_at"])
            certificate = cls(**record)
        except CertificateError:
            raise
        except (TypeError, ValueError, KeyError) as error:
            raise CertificateError(f"not a certificate: {error}") from error
        if set(certificate.thresholds) != {t.threshold for t in certificate.evidence if t.certified}:
            raise CertificateError("not a certificate: its thresholds are not the ones its evidence certifies")
        return certificate
