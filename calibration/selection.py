"""Choosing a calibrator: cross-validated NLL, and the simplest within a margin of the best."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demur.calibration.affine import BiasCorrectedTemperature, DirichletCalibration, VectorScaling
from demur.calibration.arrays import EPSILON, FloatArray, IntArray, check_labels, check_logprobs
from demur.calibration.binning import IsotonicCalibration, ScalingBinning
from demur.calibration.calibrator import Calibrator, FitSummary, require_labels
from demur.calibration.errors import InvalidCalibrator, InvalidParameter, Refused
from demur.calibration.folds import assign_folds, content_groups, mean_and_error
from demur.calibration.stored import load
from demur.calibration.temperature import Identity, TemperatureScaling
from demur.calibration.top_label import BetaCalibration, PlattScaling

CALIBRATORS: tuple[type[Calibrator], ...] = (
    Identity,
    TemperatureScaling,
    PlattScaling,
    ScalingBinning,
    BetaCalibration,
    BiasCorrectedTemperature,
    VectorScaling,
    IsotonicCalibration,
    DirichletCalibration,
)
LABELS_PER_PARAMETER = 10


@dataclass(frozen=True)
class Candidate:
    """How one calibrator fared.

    Attributes:
        kind: its `kind`.
        n_parameters: numbers it learns.
        nll: mean cross-validated negative log-likelihood in nats, None if it did not run.
        excess: that, less the best candidate's.
        standard_error: of `excess`, from paired rows.
        skipped: why it did not run, None if it did.
    """

    kind: str
    n_parameters: int
    nll: float | None = None
    excess: float | None = None
    standard_error: float | None = None
    skipped: str | None = None


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen calibrator and how the choice was made.

    Attributes:
        calibrator: fitted on all rows; `Identity` where labels were refused.
        candidates: every candidate, simplest first.
        n: labels.
        n_folds: folds of the cross-validation.
        refusal: why nothing could be fitted, None if it could.
    """

    calibrator: Calibrator
    candidates: tuple[Candidate, ...]
    n: int
    n_folds: int
    refusal: str | None = None


def select_calibrator(
    logprobs: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    candidates: Sequence[Calibrator] | None = None,
    options_vary: bool = False,
    keep_decision: bool = False,
    n_folds: int = 5,
    margin: float = 1.0,
    groups: Sequence[Hashable] | None = None,
) -> Selection:
    """Choose by cross-validated NLL the simplest candidate within `margin` standard errors of the best.

    The standard error is that of the paired difference to the best (the one-standard-error rule of Breiman et al. 1984,
    paired). Calibration errors play no part: they are biased and can be gamed. A candidate needs ten labels for every
    number it learns. Folds follow the rows' content, so row order does not matter and equal rows never straddle.

    Args:
        logprobs: [n, K], as for `Calibrator.fit`.
        labels: [n], gold option indices.
        candidates: unfitted calibrators, all nine by default.
        options_vary: whether the options differ between rows; leaves out what learns a parameter per option.
        keep_decision: leave out what may move the decision (the label-free route to a certificate).
        n_folds: at least 2.
        margin: standard errors given away for simplicity; 0 takes the best.
        groups: [n] names; rows of one group stay in one fold and count as dependent.

    Returns:
        The selection. Labels that are too few or one-sided are no error here: identity is kept and `refusal` says why.

    Raises:
        InvalidData: NaN, `+inf`, a label outside the options, lengths that differ, no rows.
        InvalidParameter: `n_folds` < 2, a negative margin, no candidates.
    """
    if n_folds < 2 or not margin >= 0.0:
        raise InvalidParameter(f"n_folds must be at least 2 and margin at least 0, not {n_folds} and {margin}")
    chosen = [kind() for kind in CALIBRATORS] if candidates is None else list(candidates)
    if not chosen:
        raise InvalidParameter("no candidates")
    logp, _ = check_logprobs(logprobs)
    y = check_labels(labels, *logp.shape)
    n, k = logp.shape
    chosen.sort(key=lambda candidate: candidate.n_parameters(k))
    skipped = [_reason_to_skip(candidate, n, k, options_vary, keep_decision) for candidate in chosen]
    group = content_groups(np.asarray(logprobs, dtype=np.float64), y, groups)
    try:
        require_labels(logp, y, options_vary)
        fold = assign_folds(group, logp.argmax(axis=1) == y, n_folds)
    except Refused as refusal:
        return Selection(
            Identity(),
            tuple(Candidate(c.kind, c.n_parameters(k), skipped=str(refusal)) for c in chosen),
            n,
            n_folds,
            str(refusal),
        )
    losses = [None if why else _held_out_nll(c, logp, y, fold) for c, why in zip(chosen, skipped, strict=True)]
    ran = [loss for loss in losses if loss is not None]
    if not ran:
        why = f"no candidate can be used: {'; '.join(str(s) for s in skipped)}"
        return Selection(Identity(), _results(chosen, k, skipped, losses, None, group), n, n_folds, why)
    best = min(ran, key=lambda loss: float(loss.mean()))
    results = _results(chosen, k, skipped, losses, best, group)
    winner = next(
        candidate
        for candidate, result in zip(chosen, results, strict=True)
        if result.excess is not None
        and result.standard_error is not None
        and result.excess <= margin * result.standard_error
    )
    return Selection(winner.fit(logprobs, y, options_vary=options_vary), results, n, int(fold.max()) + 1)


def calibrator_from_json(text: str) -> Calibrator:
    """Restore a calibrator written by `Calibrator.to_json`; raises `InvalidCalibrator` for anything else."""
    calibrator = load(text, {kind.kind: kind for kind in CALIBRATORS}, {"fitted": FitSummary})
    if calibrator.fitted is None:
        return calibrator
    # Shapes that disagree show up here, on a uniform row, and not while serving.
    k = calibrator.fitted.n_options
    try:
        p = calibrator.transform_one(np.zeros(k))
    except (TypeError, ValueError, IndexError) as error:
        raise InvalidCalibrator(f"{calibrator.kind}: its parameters do not fit together: {error}") from None
    if p.shape != (k,) or not abs(p.sum() - 1.0) < 1e-6:
        raise InvalidCalibrator(f"{calibrator.kind}: its parameters do not fit together")
    return calibrator


def _reason_to_skip(
    candidate: Calibrator, n: int, n_options: int, options_vary: bool, keep_decision: bool
) -> str | None:
    if options_vary and candidate.needs_fixed_options:
        return "learns a parameter per option, but the options vary"
    if keep_decision and candidate.moves_decision:
        return "may move the decision"
    needed = LABELS_PER_PARAMETER * candidate.n_parameters(n_options)
    return f"needs {needed} labels, {needed - n} more" if n < needed else None


def _held_out_nll(candidate: Calibrator, logp: FloatArray, labels: IntArray, fold: IntArray) -> FloatArray:
    loss = np.empty(len(labels))
    for f in range(int(fold.max()) + 1):
        test = np.flatnonzero(fold == f)
        train = fold != f
        fitted, _ = candidate.estimate(logp[train], labels[train])
        loss[test] = -np.log(np.maximum(fitted.apply(logp[test])[np.arange(len(test)), labels[test]], EPSILON))
    return loss


def _results(
    chosen: list[Calibrator],
    n_options: int,
    skipped: list[str | None],
    losses: list[FloatArray | None],
    best: FloatArray | None,
    groups: IntArray,
) -> tuple[Candidate, ...]:
    results = []
    for candidate, why, loss in zip(chosen, skipped, losses, strict=True):
        size = candidate.n_parameters(n_options)
        if loss is None or best is None:
            results.append(Candidate(candidate.kind, size, skipped=why))
        else:
            excess, error = mean_and_error(loss - best, groups)
            results.append(Candidate(candidate.kind, size, float(loss.mean()), excess, error))
    return tuple(results)
