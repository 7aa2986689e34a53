"""Making a bundle's files from readings: fit, certify, and say in words what came of it.

Which labels may certify is settled before any label is looked at (`Plan`). On the label-free route decisions are ranked
by the raw top probability and the calibrator keeps the decision, so every label certifies. On the split route half of
the units fit, anything may be fitted, and the other half certifies.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from demur.calibration import (
    CertificateError,
    CorrectnessModel,
    Selection,
    VerdictCertificates,
    certify_slice_verdicts,
    certify_verdicts,
    select_calibrator,
)
from demur.decision.labelled import LabelledData
from demur.decision.rowhash import row_hash
from demur.decision.task import ReadoutKind, Task
from demur.server.calibrated import ScoreName, min_label_mass
from demur.server.calibrated import calibrate as apply
from demur.server.crossfit import cross_fit
from demur.server.readings import Readings

Route = Literal["label_free", "split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is promised and how it is shown, settled before labels are read.

    `family`: configurations (wordings, readouts, rotations) that were compared before this one was taken. Where they
    were compared on the certifying rows themselves (`searched_elsewhere` False) delta is shared by all of them.
    `attempt`: None if this is the only one on this question; else its number, and attempt j spends delta/(j(j+1)).
    `valid_days`: how long traffic is taken to stay like the rows.
    """

    alpha: float = 0.05
    delta: float = 0.05
    beta: float = 0.30
    family: int = 1
    searched_elsewhere: bool = False
    route: Route = "label_free"
    attempt: int | None = None
    valid_days: int = 90

    def __post_init__(self) -> None:
        for name in ("alpha", "delta", "beta"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise CertificateError(f"{name} is {value!r}, but must lie strictly between 0 and 1")
        if self.beta <= self.alpha:
            raise CertificateError(f"beta is {self.beta}, but must be above alpha, which is {self.alpha}")
        if self.attempt is not None and self.attempt < 1:
            raise CertificateError(f"attempt is {self.attempt}, but the first is 1")
        if self.valid_days < 1:
            raise CertificateError(f"valid-days is {self.valid_days}, but a certificate is valid for at least one")
        if self.family < 1:
            raise CertificateError(f"family is {self.family}, but at least this one configuration was tried")
        if self.route not in ("label_free", "split"):
            raise CertificateError(f"route is {self.route!r}, but must be label_free or split")

    @property
    def spent(self) -> float:
        """The delta that this configuration may spend."""
        return self.delta if self.searched_elsewhere else self.delta / self.family

    @property
    def score(self) -> ScoreName:
        """What decisions are ranked by."""
        return "top_probability" if self.route == "label_free" else "p_correct"


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the rows: how many fitted and certified, and why the others did not certify."""

    fitted: int
    certifying: int
    low_label_mass: int
    same_group: int
    searched: int


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a bundle is made of. Held-out `probabilities` [n, K] and `p_correct` [n] are of the fitting rows.

    Where the task parts its traffic, `slices` holds the certificates, by slice, and `certificates` is None. `repeats`
    counts the rows that were left out for having the content of another.
    """

    plan: Plan
    selection: Selection
    correctness: CorrectnessModel | None
    certificates: VerdictCertificates | None
    counts: Counts
    fitting: Readings
    probabilities: NDArray[np.float64]
    p_correct: NDArray[np.float64] | None
    reference: NDArray[np.float64]
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    slices: Mapping[str, VerdictCertificates] = field(default_factory=dict)
    repeats: int = 0

    @property
    def refusal(self) -> str | None:
        """Why the labels could not be learned from."""
        return self.selection.refusal


def evidence_of(searched: LabelledData | None) -> frozenset[str]:
    """What was seen in a search: hashes of its inputs and units.

    Wordings are compared on rows that bring their own; under the task's wording those certify nothing either.
    """
    rows = () if searched is None else searched.rows
    return frozenset(one for row in rows for one in (row_hash(row.text), row.unit))


def calibrate(
    readings: Readings,
    task: Task,
    plan: Plan,
    *,
    readout: ReadoutKind,
    unlabelled: Readings | None = None,
    searched: frozenset[str] = frozenset(),
    options_vary: bool = False,
    repeats: int = 0,
    now: datetime | None = None,
) -> Calibration:
    """Fits and certifies. Each reading must have a label.

    Args:
        readings: labelled rows, each content once.
        task: what was asked; its `min_label_mass` decides which decisions are deferred whatever their score.
        plan: what to promise.
        readout: the readout that is used, which may differ from the one asked for.
        unlabelled: rows of the same traffic that do not certify.
        searched: `evidence_of` the rows that the configuration was chosen on; they and their groups fit, but are no
            evidence.
        options_vary: whether the rows bring questions of their own.
        repeats: rows that are not among them since another has the same content.
    """
    made_at = now or datetime.now(UTC)
    mass_limit = min_label_mass(task.policy, readout)
    fits, certifies = _split(readings, plan)
    fitting = readings.take(fits)
    selection = select_calibrator(
        fitting.scores,
        fitting.labels,
        options_vary=options_vary,
        keep_decision=plan.route == "label_free",
        groups=fitting.units,
    )
    crossed = cross_fit(
        selection.calibrator,
        fitting.scores,
        fitting.labels,
        fitting.label_mass,
        fitting.units,
        options_vary=options_vary,
    )
    correctness = None if selection.refusal else crossed.correctness
    nothing_fitted = correctness is None and selection.calibrator.fitted is None
    chosen, counts = _certifying(readings, certifies, mass_limit, searched, int(fits.sum()))
    certificates, slices = None, {}
    if selection.refusal is None and counts.certifying and not (plan.route == "split" and nothing_fitted):
        score, decided = scored(readings.take(chosen), selection, correctness, plan.score)
        others, their_slices = None, np.zeros(0, dtype=np.str_)
        if unlabelled is not None:
            usable = unlabelled.take(unlabelled.label_mass >= mass_limit)
            others = scored(usable, selection, correctness, plan.score)[0] if len(usable.rows) else None
            their_slices = _slices(usable)
        correct = decided == readings.labels[chosen]
        promise: dict[str, Any] = {
            "alpha": plan.alpha,
            "beta": plan.beta,
            "delta": plan.delta,
            "family": 1 if plan.searched_elsewhere else plan.family,
            "route": plan.route,
            "score_name": plan.score,
            "attempt": plan.attempt,
            "issued_at": made_at,
            "valid_for": timedelta(days=plan.valid_days),
        }
        if task.slice_by is None:
            certificates = certify_verdicts(score, correct, unlabelled=others, **promise)
        else:
            values = _slices(readings.take(chosen))
            parted = None if others is None else {one: others[their_slices == one] for one in np.unique(their_slices)}
            slices = certify_slice_verdicts(score, correct, values, unlabelled=parted, **promise)
    reference = scored(fitting, selection, correctness, "top_probability" if nothing_fitted else plan.score)[0]
    return Calibration(
        plan,
        selection,
        correctness,
        certificates,
        counts,
        fitting,
        crossed.probabilities,
        None if selection.refusal else crossed.p_correct,
        reference,
        made_at,
        slices,
        repeats,
    )


def _slices(readings: Readings) -> NDArray[np.str_]:
    """[n], the slice of every row."""
    return np.array([row.slice for row in readings.rows], dtype=np.str_)


def scored(
    readings: Readings, selection: Selection, correctness: CorrectnessModel | None, name: ScoreName
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores [n] and decisions [n], by the code that serves."""
    applied = [
        apply(selection.calibrator, correctness, name, readings.readout(index)) for index in range(len(readings.rows))
    ]
    return np.array([one.score for one in applied]), np.array([one.index for one in applied], dtype=np.int64)


def _split(readings: Readings, plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows fit and which certify; a unit is never in both halves of a split."""
    if plan.route == "label_free":
        everything = np.ones(len(readings.rows), dtype=bool)
        return everything, everything
    fits = np.array([hashlib.sha256(f"half {unit}".encode()).digest()[0] % 2 == 0 for unit in readings.units])
    return fits, ~fits


def _certifying(
    readings: Readings, allowed: NDArray[np.bool_], mass_limit: float, never: frozenset[str], fitted: int
) -> tuple[NDArray[np.int64], Counts]:
    """Indices of the certifying rows. Which row speaks for its group is decided by hash, blind to its label.

    Slices are certified one by one, so a group speaks in each of its own.
    """
    seen = {row.unit for row in readings.rows if not never.isdisjoint((row.hash, row.unit))}
    fresh = np.array([row.unit not in seen for row in readings.rows])
    heavy = readings.label_mass >= mass_limit
    usable = sorted(np.flatnonzero(allowed & fresh & heavy), key=lambda index: readings.rows[index].hash)
    first: dict[tuple[str, str | None], int] = {}
    for index in usable:
        first.setdefault((readings.rows[index].unit, readings.rows[index].slice), int(index))
    chosen = np.array(sorted(first.values()), dtype=np.int64)
    counts = Counts(
        fitted=fitted,
        certifying=len(chosen),
        low_label_mass=int((allowed & fresh & ~heavy).sum()),
        same_group=len(usable) - len(chosen),
        searched=int((allowed & ~fresh).sum()),
    )
    return chosen, counts
