"""What a calibrator and `p_correct` would have said of rows they did not see: cross-fitting over hashed groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demur.calibration import Calibrator, CorrectnessModel, Identity, Refused

N_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class CrossFit:
    """Held-out `probabilities` [n, K] and `p_correct` [n] (None where labels were refused), and the fitted model.

    `correctness` is fitted on all held-out probabilities, so no row of its fit was seen by the calibrator beneath.
    """

    probabilities: NDArray[np.float64]
    p_correct: NDArray[np.float64] | None
    correctness: CorrectnessModel | None


def cross_fit(
    calibrator: Calibrator,
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    label_mass: NDArray[np.float64],
    units: Sequence[str],
    *,
    options_vary: bool = False,
) -> CrossFit:
    """Refits a calibrator of this kind without each fold in turn; folds follow the hashes `units`, not the order."""
    fold = np.array([int(unit[:8], 16) % N_FOLDS for unit in units])
    if len(np.unique(fold)) < 2:  # so few units that chance put them together
        fold = np.unique(list(units), return_inverse=True)[1] % N_FOLDS
    held_out = np.empty_like(scores)
    for number in np.unique(fold):
        rest, here = fold != number, fold == number
        held_out[here] = _refit(calibrator, scores[rest], labels[rest], options_vary).transform(scores[here])
    try:
        correctness = CorrectnessModel().fit(held_out, labels, label_mass=label_mass, groups=list(units))
    except Refused:
        return CrossFit(held_out, None, None)
    p_correct = np.empty(len(scores))
    for number in np.unique(fold):
        rest, here = fold != number, fold == number
        p_correct[here] = _held_out_correctness(held_out, labels, label_mass, units, rest, here)
    return CrossFit(held_out, p_correct, correctness)


def _refit(
    calibrator: Calibrator, scores: NDArray[np.float64], labels: NDArray[np.int64], options_vary: bool
) -> Calibrator:
    if calibrator.fitted is None:
        return calibrator
    try:
        return type(calibrator)().fit(scores, labels, options_vary=options_vary)
    except Refused:
        return Identity()


def _held_out_correctness(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    label_mass: NDArray[np.float64],
    units: Sequence[str],
    rest: NDArray[np.bool_],
    here: NDArray[np.bool_],
) -> NDArray[np.float64]:
    groups = [unit for unit, use in zip(units, rest, strict=True) if use]
    try:
        model = CorrectnessModel().fit(probabilities[rest], labels[rest], label_mass=label_mass[rest], groups=groups)
    except Refused:
        return np.asarray(probabilities[here].max(axis=1))
    return np.asarray(model.transform(probabilities[here], label_mass=label_mass[here]))
