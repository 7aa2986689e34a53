"""What a bundle means while serving, and the one place that computes p_correct and the score.

    calibrator.json    {"calibrator": <Calibrator.to_json>, "correctness": <CorrectnessModel.to_json> or null}
    certificate.json   null, or {"trusted": <Certificate.to_json> or null, "not_deferred": the same, "score",
                       "issued_at", "expires_at", "policy_hash", "assumptions", "evidence", "attempts"}; with slices
                       "slice_by" and "slices", {value: {"trusted", "not_deferred"}}, too, and null for the whole
    reliability.svg    the diagram that GET /tasks/{name}/calibration shows; may be missing
    reference.json     {"scores": [...], ...}, the scores of the fitting rows; budgets are counted on them

Fitting calls `pins`, `Calibrated.apply` and `policy_hash` too, so that what was certified is what is served. Certified
rows are those with at least `min_label_mass`: a decision below it is deferred whatever its score.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from demur.calibration import (
    CalibrationError,
    Calibrator,
    CorrectnessModel,
    Identity,
    NotFitted,
    calibrator_from_json,
)
from demur.decision.bundle import Bundle
from demur.decision.canonical import Json, canonical_bytes
from demur.decision.errors import BundleError
from demur.decision.prompt import CompiledPrompt
from demur.decision.readout import Readout
from demur.decision.task import DEFAULT_MIN_LABEL_MASS, DecisionSpec, Mode, PolicySpec, ReadoutKind, Truncation
from demur.server.guarantee import Guarantee, guarantee_of
from demur.server.guarantee import ScoreName as ScoreName  # fitting asks for it here
from demur.server.types import CalibrationInfo


class Running(Protocol):
    """The part of a model's identity that bundles are pinned to: hex SHA-256 each."""

    @property
    def weights(self) -> str:
        """Of the weights and the model's configuration."""
        ...

    @property
    def tokenizer(self) -> str:
        """Of the tokenizer's files."""
        ...

    @property
    def chat_template(self) -> str:
        """Of the chat template."""
        ...


def pins(spec: DecisionSpec, prompt: CompiledPrompt, identity: Running, room: int) -> dict[str, str]:
    """A hash for every name in `demur.decision.bundle.PINS`.

    Args:
        spec: the question.
        prompt: `spec` compiled for the model.
        identity: of the model.
        room: tokens of input that context and server leave. A task that cuts inputs cuts them there unless it says
            where.
    """
    thought = asdict(spec.thought) if spec.mode is Mode.REASONED else None
    plan = prompt.plan
    return {
        "weights": identity.weights,
        "tokenizer": identity.tokenizer,
        "chat_template": identity.chat_template,
        "question": _sha256(spec.question.text),
        "options": _sha256([[option.name, option.description] for option in spec.question.options]),
        "readout": _sha256([spec.readout.kind, spec.readout.length, plan.kind]),
        "mode": _sha256([spec.mode, thought]),
        "labels": _sha256([[label, *ids] for label, ids in zip(plan.labels, plan.sequences, strict=True)]),
        # How an input is cut belongs to what is read of it.
        "prompt": _sha256([prompt.digest, spec.truncation, _cut(spec, room)]),
    }


def _cut(spec: DecisionSpec, room: int) -> int | None:
    if spec.truncation is Truncation.REFUSE or (spec.max_input_tokens is not None and spec.max_input_tokens <= room):
        return spec.max_input_tokens
    return room


def min_label_mass(policy: PolicySpec, readout: ReadoutKind) -> float:
    """The label mass below which a decision is deferred; `readout` is the one that is used."""
    return DEFAULT_MIN_LABEL_MASS[readout] if policy.min_label_mass is None else policy.min_label_mass


def policy_hash(policy: PolicySpec, readout: ReadoutKind) -> str:
    """SHA-256 (hex) of what a policy does to the trusted set besides its threshold: whose label mass is too low."""
    return _mass_hash(min_label_mass(policy, readout))


@lru_cache(maxsize=256)
def _mass_hash(least: float) -> str:
    return _sha256({"min_label_mass": least})


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A calibrated readout: the decision's `index`, float64 `probabilities` [K], `p_correct`, `score`.

    `p_correct` is None where no label was learned from: an identity that was kept because labels were refused.
    """

    index: int
    probabilities: NDArray[np.float64]
    p_correct: float | None
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A bundle's calibrator, correctness model and guarantee.

    `reference` are scores of the fitting rows, and `reference_mass` their label mass, or none.
    """

    bundle: Bundle
    calibrator: Calibrator
    correctness: CorrectnessModel | None
    guarantee: Guarantee | None
    reference: NDArray[np.float64] | None = None
    reference_mass: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> "Calibrated":
        """Parses a bundle. Raises BundleError naming the file, also where calibrator and certificate do not agree."""
        calibrator, correctness = _calibrator(bundle)
        guarantee = guarantee_of(bundle)
        if guarantee is not None:
            _check_route(bundle, calibrator, correctness, guarantee)
        return cls(bundle, calibrator, correctness, guarantee, *_reference(bundle))

    @property
    def score_name(self) -> ScoreName:
        """What decisions are ranked by."""
        return "top_probability" if self.guarantee is None else self.guarantee.score

    @property
    def method(self) -> str:
        """The calibrator's kind, with `+correctness` where p_correct is more than the top probability."""
        more = self.correctness is not None and len(self.correctness.weights)
        return f"{self.calibrator.kind}+correctness" if more else self.calibrator.kind

    @property
    def n(self) -> int:
        """Labels that the calibrator was fitted on."""
        return 0 if self.calibrator.fitted is None else self.calibrator.fitted.n

    @property
    def info(self) -> CalibrationInfo:
        """What answers say of it."""
        return CalibrationInfo(self.method, self.bundle.id, self.n, self.bundle.created_at.isoformat())

    def mismatches(self, running: Mapping[str, str], slice_by: str | None) -> tuple[str, ...]:
        """The pinned parts that are not what is running, and `slices` where traffic is not parted by this field."""
        parts = self.bundle.mismatches(running)
        parted_alike = self.guarantee is None or self.guarantee.slice_by == slice_by
        return parts if parted_alike else (*parts, "slices")

    def apply(self, readout: Readout) -> Applied:
        """Calibrates one readout. The decision stays the readout's, unless the calibrator is one that may move it."""
        return calibrate(self.calibrator, self.correctness, self.score_name, readout)


def calibrate(
    calibrator: Calibrator, correctness: CorrectnessModel | None, score: ScoreName, readout: Readout
) -> Applied:
    """What `Calibrated.apply` does, for parts that are no bundle yet."""
    p = calibrator.transform_one(readout.scores)
    index = int(p.argmax()) if calibrator.moves_decision else readout.decision
    p_correct: float | None = None
    if correctness is not None or calibrator.fitted is not None:
        p_correct = float(p[index]) if correctness is None else correctness.transform_one(p, readout.label_mass)
        p_correct = min(1.0, max(0.0, p_correct))
    if score == "p_correct":
        if p_correct is None:
            raise NotFitted("there is no p_correct to rank by: nothing was fitted")
        return Applied(index, p, p_correct, p_correct)
    raw = readout.probabilities
    value = float(raw[index])
    if score == "margin":
        value -= float(max(raw[:index].max(initial=0.0), raw[index + 1 :].max(initial=0.0)))
    return Applied(index, p, p_correct, value)


def _calibrator(bundle: Bundle) -> tuple[Calibrator, CorrectnessModel | None]:
    file = bundle.path / "calibrator.json"
    match bundle.document("calibrator.json"):
        case {"calibrator": dict() as stored, "correctness": dict() | None as model, **rest} if not rest:
            pass
        case _:
            raise BundleError(f"{file} must hold `calibrator` and `correctness`, and nothing else")
    try:
        calibrator = calibrator_from_json(json.dumps(stored))
        correctness = None if model is None else CorrectnessModel.from_json(json.dumps(model))
    except CalibrationError as error:
        raise BundleError(f"{file}: {error}") from None
    if calibrator.fitted is None and not isinstance(calibrator, Identity):
        raise BundleError(f"{file}: its calibrator is not fitted")
    if correctness is not None and correctness.fitted is None:
        raise BundleError(f"{file}: its correctness model is not fitted")
    return calibrator, correctness


def _check_route(
    bundle: Bundle, calibrator: Calibrator, correctness: CorrectnessModel | None, guarantee: Guarantee
) -> None:
    """Labels that the decision or the score were fitted on must not have certified: then the route is the split."""
    if guarantee.score == "p_correct" and calibrator.fitted is None and correctness is None:
        raise BundleError(f"{bundle.path / 'certificate.json'}: the score is p_correct, and nothing was fitted")
    fitted = calibrator.moves_decision or guarantee.score == "p_correct"
    for certificate in guarantee.certificates():
        if fitted and certificate.route != "split":
            raise BundleError(
                f"{bundle.path / 'certificate.json'}: the decision or the score was fitted ({calibrator.kind}, "
                f"{guarantee.score}), so only the split route certifies it"
            )


def _reference(bundle: Bundle) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    document = bundle.document("reference.json")
    found: list[NDArray[np.float64] | None] = []
    for name in ("scores", "label_mass"):
        given = document.get(name) if isinstance(document, dict) else None
        column = np.zeros(0)
        if isinstance(given, list):
            try:
                column = np.asarray(given, dtype=np.float64)
            except (TypeError, ValueError):
                column = np.full(1, np.nan)
            if column.ndim != 1 or not np.isfinite(column).all():
                raise BundleError(f"{bundle.path / 'reference.json'}: `{name}` must be a list of finite numbers")
        found.append(column if column.size else None)
    scores, mass = found
    if scores is not None and mass is not None and len(scores) != len(mass):
        raise BundleError(f"{bundle.path / 'reference.json'}: `scores` and `label_mass` are not of the same rows")
    return scores, mass


def _sha256(value: Json) -> str:
    return hashlib.sha256(canonical_bytes(value)).hexdigest()
