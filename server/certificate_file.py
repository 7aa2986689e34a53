"""certificate.json: what a bundle says of the certificates that were issued."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from demur.calibration import Certificate, VerdictCertificates

#: Certificates by slice; under None that of all traffic, which then is the only one.
Issued = Mapping[str | None, VerdictCertificates]


def certificate_document(issued: Issued, *, slice_by: str | None, policy_hash: str, attempts: int) -> dict[str, Any]:
    """What certificate.json holds. Of slices certified at different times the last date and expiry are the whole's."""
    trusted = [one.trusted for one in issued.values()]
    newest = max(trusted, key=lambda one: one.issued_at)
    expiry = _latest([one.expires_at for one in trusted])
    whole = issued.get(None)
    parts = {value: _chains(one) for value, one in issued.items() if value is not None}
    return {
        **({"trusted": None, "not_deferred": None} if whole is None else _chains(whole)),
        **({"slice_by": slice_by, "slices": parts} if whole is None else {}),
        "score": newest.score,
        "issued_at": newest.issued_at.isoformat(),
        "expires_at": None if expiry is None else expiry.isoformat(),
        "policy_hash": policy_hash,
        "assumptions": list(newest.assumptions),
        "evidence": {
            "certifying_rows": sum(one.n for one in trusted),
            "errors": sum(one.errors for one in trusted),
            "unlabelled": sum(one.unlabelled for one in trusted),
        },
        "attempts": attempts,
    }


def _latest(times: list[datetime | None]) -> datetime | None:
    """None, which never comes, is the latest."""
    known = [time for time in times if time is not None]
    return max(known) if len(known) == len(times) else None


def _chains(certificates: VerdictCertificates) -> dict[str, Any]:
    return {"trusted": _stored(certificates.trusted), "not_deferred": _stored(certificates.not_deferred)}


def _stored(certificate: Certificate) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(certificate.to_json())
    return stored
