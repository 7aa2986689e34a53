"""A bundle's certificates while serving: which scores they let trust, what answers say of them, until when."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, get_args

from demur.calibration import Certificate
from demur.decision.bundle import Bundle
from demur.decision.canonical import Json, canonical_bytes
from demur.decision.errors import BundleError
from demur.server.types import CertificateInfo, Standing

#: What decisions may be ranked by; all lie in [-1, 1]. The first two know no label, so every label may certify them.
ScoreName = Literal["top_probability", "margin", "p_correct"]


@dataclass(frozen=True, slots=True, eq=False)
class Guarantee:
    """The certificates of a bundle, and what they are bound to: score, policy and dates.

    `key` names the certificate and what it was issued for, so that it keeps its monitor's state wherever it is served.
    `trust_at`, `answer_at`: the loosest thresholds certified for trust and for answers; None where there is none.
    `ends_at`: when the whole, or what it promises of trust, expires first.
    `slice_by`: the field that parts traffic into `slices`, which then hold the certificates, one guarantee each;
    `slice` is the value that such a one speaks of.
    """

    score: ScoreName
    trusted: Certificate | None
    not_deferred: Certificate | None
    policy_hash: str
    issued_at: datetime
    expires_at: datetime | None
    key: str = ""
    slice_by: str | None = None
    slices: Mapping[str, "Guarantee"] = field(default_factory=dict)
    slice: str | None = None
    trust_at: float | None = field(init=False)
    answer_at: float | None = field(init=False)
    ends_at: datetime | None = field(init=False)

    def __post_init__(self) -> None:
        # Lists of thresholds are long, and every decision asks for their ends.
        for name, certificate in (("trust_at", self.trusted), ("answer_at", self.not_deferred)):
            object.__setattr__(self, name, None if certificate is None else certificate.threshold)
        ends = [self.expires_at, None if self.trusted is None else self.trusted.expires_at]
        object.__setattr__(self, "ends_at", min((end for end in ends if end is not None), default=None))

    def certificates(self) -> Iterator[Certificate]:
        """All that there are, of all slices."""
        yield from (one for one in (self.trusted, self.not_deferred) if one is not None)
        for one in self.slices.values():
            yield from one.certificates()

    def known(self, value: str | None) -> bool:
        """Whether a decision of this slice is spoken of at all."""
        return self.slice_by is None or value in self.slices

    def of(self, value: str | None) -> "Guarantee":
        """What is guaranteed of a slice, under a key of its own; the whole, which then promises nothing, of others."""
        return self if value is None else self.slices.get(value, self)

    def expired(self, now: datetime) -> bool:
        """Whether `now` (with a time zone) is at or past the expiry."""
        return self.ends_at is not None and now >= self.ends_at


def states(guarantee: Guarantee, standing: Callable[[str], Standing], now: datetime) -> dict[str, str]:
    """How each certificate stands at `now`, by slice; one of all traffic under the empty name.

    As in docs/monitoring.md, and `nothing_certified`.
    """
    parts = guarantee.slices or {"": guarantee}
    return {value: _state(part, standing(part.key), now) for value, part in parts.items()}


def _state(part: Guarantee, standing: Standing, now: datetime) -> str:
    if part.trust_at is None:
        return "nothing_certified"
    if standing is not Standing.WITHDRAWN and part.expired(now):
        return "expired"
    return standing.value


def holds(guarantee: Guarantee, standing: Callable[[str], Standing], now: datetime) -> bool:
    """Whether a certificate and those of its slices are in force at `now`: not expired, and valid by `standing`."""
    found = set(states(guarantee, standing, now).values()) - {"nothing_certified"}
    return found == {"valid"}


def first_end(guarantee: Guarantee) -> datetime | None:
    """When the first of the certificates that let something be trusted expires; None if none ever does."""
    parts = guarantee.slices.values() or (guarantee,)
    return min((one.ends_at for one in parts if one.trust_at is not None and one.ends_at is not None), default=None)


@lru_cache(maxsize=256)
def statement(guarantee: Guarantee, threshold: float) -> CertificateInfo | None:
    """What answers say of the trusted set that begins at `threshold`, one of the certified ones."""
    certificate = guarantee.trusted
    if certificate is None:
        return None
    return CertificateInfo(
        alpha=certificate.alpha,
        delta=certificate.delta,
        threshold=threshold,
        n=certificate.n,
        score=certificate.score,
        attempt=certificate.attempt,
        issued_at=certificate.issued_at.isoformat(),
        expires_at=None if guarantee.ends_at is None else guarantee.ends_at.isoformat(),
        slice=guarantee.slice,
    )


def guarantee_of(bundle: Bundle) -> Guarantee | None:
    """What a bundle's certificate.json says. Raises BundleError naming the file."""
    file = bundle.path / "certificate.json"
    match bundle.document("certificate.json"):
        case None:
            return None
        case {
            "trusted": dict() | None as trusted,
            "not_deferred": dict() | None as not_deferred,
            "score": str() as score,
            "issued_at": str() as issued_at,
            "expires_at": str() | None as expires_at,
            "policy_hash": str() as policy,
            **rest,
        } if score in get_args(ScoreName):
            pass
        case _:
            raise BundleError(f"{file} is not what certifies a bundle")
    try:
        guarantee = Guarantee(
            score,  # type: ignore[arg-type]  # the pattern's guard says that it is one
            _certificate(trusted),
            _certificate(not_deferred),
            policy,
            _time(issued_at),
            None if expires_at is None else _time(expires_at),
            _key(bundle, hashlib.sha256(bundle.files["certificate.json"]).hexdigest()),
        )
        guarantee = _sliced(bundle, guarantee, rest.get("slice_by"), rest.get("slices"))
    except ValueError as error:  # CalibrationError is one
        raise BundleError(f"{file}: {error}") from None
    for one in (guarantee, *guarantee.slices.values()):
        for certificate, claim in ((one.trusted, "trusted"), (one.not_deferred, "not_deferred")):
            if certificate is not None and (certificate.claim, certificate.score) != (claim, score):
                raise BundleError(f"{file}: the certificate under `{claim}` is about another claim or score")
    return guarantee


def _key(bundle: Bundle, certificate: Json) -> str:
    """Hash of a certificate and of all that it was issued for, the calibrator left aside."""
    said: Json = [bundle.task, dict(bundle.pins), certificate]
    return hashlib.sha256(canonical_bytes(said)).hexdigest()[:32]


def _sliced(bundle: Bundle, whole: Guarantee, slice_by: object, slices: object) -> Guarantee:
    """The guarantee with its slices, where there are any; a certificate of the whole is none of a slice.

    A slice's key does not depend on the other slices: when those are certified anew, its process goes on.
    """
    if slice_by is None and slices is None:
        return whole
    if not (isinstance(slice_by, str) and isinstance(slices, dict)) or whole.trusted or whole.not_deferred:
        raise ValueError("`slice_by` and `slices` belong together, and leave nothing to certify of the whole")
    parts: dict[str, Guarantee] = {}
    for value, stored in slices.items():
        match stored:
            case {"trusted": dict() as trusted, "not_deferred": dict() as not_deferred, **rest} if not rest:
                one, other = _read_certificate(trusted), _read_certificate(not_deferred)
                key = _key(bundle, [whole.policy_hash, whole.score, value, stored])
                parts[value] = replace(
                    whole, trusted=one, not_deferred=other, slice=value, key=key, issued_at=one.issued_at
                )
            case _:
                raise ValueError(f"slice {value} must hold `trusted` and `not_deferred`")
    return replace(whole, slice_by=slice_by, slices=parts)


def _certificate(stored: Mapping[str, Any] | None) -> Certificate | None:
    return None if stored is None else _read_certificate(stored)


def _read_certificate(stored: Mapping[str, Any]) -> Certificate:
    certificate = Certificate.from_json(json.dumps(stored))
    for time in (certificate.issued_at, certificate.expires_at):
        if time is not None and time.tzinfo is None:
            raise ValueError("a time has no time zone")
    return certificate


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time has no time zone")
    return time
