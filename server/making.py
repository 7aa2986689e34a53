"""What evaluations compare: rows as a calibrator shows them that has not seen them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demur.calibration import select_calibrator
from demur.decision.bundle import read_bundle
from demur.decision.errors import BundleError
from demur.decision.task import ReadoutKind, Task
from demur.server.calibrated import Calibrated, min_label_mass
from demur.server.crossfit import cross_fit
from demur.server.readings import Readings
from demur.server.report_html import Ranking

CROSS_FITTED = (
    "cross-fitted: every row's calibrated probabilities come from a calibrator that did not see it, nor any row of its "
    "group"
)


@dataclass(frozen=True, slots=True, eq=False)
class After:
    """Calibrated `probabilities` [n, K] and `p_correct` [n] (None: the top probability), and where they come from.

    `ranking`: what the bundle that they come from trusts by.
    """

    probabilities: NDArray[np.float64]
    p_correct: NDArray[np.float64] | None
    method: str
    held_out: str
    ranking: Ranking | None = None


def after_cross_fit(readings: Readings, *, options_vary: bool = False) -> After:
    """The calibrator that cross-validation selects, refitted without each fifth of the rows in turn."""
    selection = select_calibrator(readings.scores, readings.labels, options_vary=options_vary, groups=readings.units)
    crossed = cross_fit(
        selection.calibrator,
        readings.scores,
        readings.labels,
        readings.label_mass,
        readings.units,
        options_vary=options_vary,
    )
    kept = f" ({selection.refusal})" if selection.refusal else ""
    return After(crossed.probabilities, crossed.p_correct, selection.calibrator.kind + kept, CROSS_FITTED)


def after_bundle(readings: Readings, path: Path, task: Task, pins: Mapping[str, str], readout: ReadoutKind) -> After:
    """What a bundle makes of the rows. Raises BundleError where it does not fit what read them."""
    bundle = read_bundle(path)
    calibrated = Calibrated.of(bundle)
    if mismatches := calibrated.mismatches(pins, task.slice_by):
        raise BundleError(f"{path} was made for another {', '.join(mismatches)}")
    limit = min_label_mass(task.policy, readout)
    applied = [calibrated.apply(readings.readout(index)) for index in range(len(readings.rows))]
    p_correct = [one.p_correct for one in applied if one.p_correct is not None]
    return After(
        np.stack([one.probabilities for one in applied]),
        np.array(p_correct) if len(p_correct) == len(applied) else None,
        calibrated.method,
        f"by bundle {bundle.id[:12]}, which knows none of these rows unless it was made from them",
        _ranking(calibrated, np.where(readings.label_mass >= limit, [one.score for one in applied], 0.0)),
    )


def _ranking(calibrated: Calibrated, score: NDArray[np.float64]) -> Ranking:
    guarantee = calibrated.guarantee
    if guarantee is None or guarantee.trusted is None:
        return Ranking(calibrated.score_name, score, None, None)
    return Ranking(guarantee.score, score, guarantee.trusted.alpha, guarantee.trust_at)
