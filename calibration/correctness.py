"""`p_correct`: the chance that the decision is right, from the calibrated row and the label mass."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from demur.calibration.arrays import (
    EPSILON,
    BoolArray,
    FloatArray,
    check_decisions,
    check_probabilities,
    check_unit,
)
from demur.calibration.calibrator import MIN_LABELS
from demur.calibration.errors import InvalidCalibrator, InvalidData, NotFitted, OneSided, TooFewLabels
from demur.calibration.folds import assign_folds, content_groups, mean_and_error
from demur.calibration.logistic import fit_logistic
from demur.calibration.stored import dump, load, no_numbers

N_FEATURES = 4


@dataclass(frozen=True)
class CorrectnessSummary:
    """What a `CorrectnessModel` was fitted on.

    Attributes:
        n: labels used.
        improvement: cross-validated log-loss of the top probability less that of the model, in nats.
        standard_error: of the improvement.
        kept: whether the improvement exceeded its standard error; if not, p_correct is the top probability.
    """

    n: int
    improvement: float
    standard_error: float
    kept: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class CorrectnessModel:
    """logit p_correct = logit(top probability) + intercept + weights . features.

    Features, standardised: log-odds of the top probability, log-odds of the label mass, margin to the runner-up in
    nats, and entropy in nats. The top probability enters with a weight of one besides, and a Gaussian prior holds the
    rest at zero: without evidence `p_correct` is the calibrated top probability. It is a number about the decision and
    cannot change it. No feature knows which option is which.

    Attributes:
        prior_strength: of the Gaussian prior, in labels' worth of information.
        intercept: in log-odds.
        weights, means, scales: [4], of the standardised features; empty where nothing was learned.
        uses_label_mass: whether label masses were given to `fit` and must be given to `transform`.
        fitted: summary of the fit, None before it.
    """

    kind: ClassVar[str] = "correctness"

    prior_strength: float = 1.0
    intercept: float = 0.0
    weights: FloatArray = field(default_factory=no_numbers)
    means: FloatArray = field(default_factory=no_numbers)
    scales: FloatArray = field(default_factory=no_numbers)
    uses_label_mass: int = 0
    fitted: CorrectnessSummary | None = None

    def fit(
        self,
        probabilities: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        label_mass: npt.ArrayLike | None = None,
        n_folds: int = 5,
        groups: Sequence[Hashable] | None = None,
    ) -> Self:
        """Return a fitted copy, or one that keeps the top probability where the features do not help.

        Fit on rows that the calibrator beneath did not see, or the top probability looks better than it is.

        Args:
            probabilities: [n, K], calibrated, rows sum to one; the decision is the most probable option.
            labels: [n], gold option indices.
            label_mass: [n], probability of all labels together over the whole vocabulary, in [0, 1].
            n_folds: of the cross-validation that judges whether the features help.
            groups: [n] names; rows of one group stay in one fold.

        Raises:
            InvalidData: a row that is not a distribution, a label or a mass out of range, lengths that differ.
            TooFewLabels: fewer than 20 rows.
            OneSided: every decision is right, or every one wrong.
        """
        decisions = check_decisions(probabilities, labels)
        n, correct = len(decisions.labels), decisions.correct
        if n < MIN_LABELS:
            raise TooFewLabels(f"{n} labels; at least {MIN_LABELS} are needed, {MIN_LABELS - n} more")
        if correct.all() or not correct.any():
            raise OneSided(f"all {n} decisions are {'right' if correct.all() else 'wrong'}; one of the other is needed")
        features = _features(decisions.probabilities, _check_mass(label_mass, n))
        group = content_groups(np.hstack((decisions.probabilities, features[:, 1:2])), decisions.labels, groups)
        fold = assign_folds(group, correct, n_folds)
        gain = np.empty(n)
        for f in range(int(fold.max()) + 1):
            test, train = fold == f, fold != f
            model = self._estimate(features[train], correct[train])
            gain[test] = _log_loss(features[test, 0], correct[test]) - _log_loss(
                model.log_odds(features[test]), correct[test]
            )
        improvement, error = mean_and_error(gain, group)
        kept = improvement > error
        model = self._estimate(features, correct) if kept else type(self)(prior_strength=self.prior_strength)
        return replace(
            model,
            uses_label_mass=int(kept and label_mass is not None),
            fitted=CorrectnessSummary(n, improvement, error, kept),
        )

    def transform(self, probabilities: npt.ArrayLike, *, label_mass: npt.ArrayLike | None = None) -> FloatArray:
        """Return [n] values of `p_correct`, in (0, 1).

        Args:
            probabilities: [n, K], as for `fit`.
            label_mass: [n], needed where `uses_label_mass`.

        Raises:
            NotFitted: before `fit`.
            InvalidData: a row that is not a distribution, a mass out of range or missing, lengths that differ.
        """
        p = check_probabilities(probabilities)
        return self._map(p, label_mass)

    def transform_one(self, probabilities: FloatArray, label_mass: float | None = None) -> float:
        """`transform` of one decision, [K] to a number: the same arithmetic without the row checks, for serving."""
        self._require(label_mass)
        top = min(float(probabilities.max()), 1.0 - EPSILON)
        log_odds = float(special.logit(top))
        if len(self.weights):
            mass = 1.0
            if self.uses_label_mass and label_mass is not None:
                mass = float(_check_mass([label_mass], 1)[0])
            mass = max(min(mass, 1.0 - EPSILON), EPSILON)
            runner_up = max(float(np.partition(probabilities, -2)[-2]), EPSILON)
            entropy = special.entr(np.maximum(probabilities, 0.0)).sum()
            features = np.array((log_odds, special.logit(mass), np.log(top / runner_up), entropy))
            log_odds = float(self.log_odds(features[None])[0])
        return float(special.expit(log_odds))

    def log_odds(self, features: FloatArray) -> FloatArray:
        """Log-odds of `p_correct` from [n, 4] features."""
        if not len(self.weights):
            return features[:, 0]
        return features[:, 0] + self.intercept + (features - self.means) / self.scales @ self.weights

    def to_json(self) -> str:
        """Return one JSON object that `from_json` restores exactly."""
        return dump(self)

    @classmethod
    def from_json(cls, text: str) -> "CorrectnessModel":
        """Restore what `to_json` wrote; raises `InvalidCalibrator` for anything else."""
        model = load(text, {cls.kind: cls}, {"fitted": CorrectnessSummary})
        shapes = {model.weights.shape, model.means.shape, model.scales.shape}
        if shapes not in ({(0,)}, {(N_FEATURES,)}):
            raise InvalidCalibrator(f"weights, means and scales must hold {N_FEATURES} numbers each, or none")
        return model

    def _require(self, label_mass: npt.ArrayLike | None) -> None:
        if self.fitted is None:
            raise NotFitted("CorrectnessModel is not fitted; call fit(probabilities, labels) first")
        if self.uses_label_mass and label_mass is None:
            raise InvalidData("this p_correct was fitted with label masses; they are missing")

    def _map(self, p: FloatArray, label_mass: npt.ArrayLike | None) -> FloatArray:
        self._require(label_mass)
        mass = _check_mass(label_mass, len(p)) if self.uses_label_mass else np.ones(len(p))
        mapped: FloatArray = special.expit(self.log_odds(_features(p, mass)))
        return mapped

    def _estimate(self, features: FloatArray, correct: BoolArray) -> Self:
        means, scales = features.mean(axis=0), features.std(axis=0)
        # A constant feature tells nothing; its standardised value is zero at any scale.
        scales = np.where(scales > 1e-9, scales, 1.0)
        columns = np.hstack(((features - means) / scales, np.ones((len(features), 1))))
        weights = fit_logistic(
            columns, correct.astype(np.float64), offset=features[:, 0], prior_strength=self.prior_strength
        )
        return replace(self, intercept=float(weights[-1]), weights=weights[:-1], means=means, scales=scales)


def _features(p: FloatArray, mass: FloatArray) -> FloatArray:
    two = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    runner_up, top = np.maximum(two[:, 0], EPSILON), np.minimum(two[:, 1], 1.0 - EPSILON)
    mass = np.maximum(np.minimum(mass, 1.0 - EPSILON), EPSILON)
    entropy = special.entr(np.maximum(p, 0.0)).sum(axis=1)
    return np.stack((special.logit(top), special.logit(mass), np.log(top / runner_up), entropy), axis=1)


def _check_mass(label_mass: npt.ArrayLike | None, n: int) -> FloatArray:
    if label_mass is None:
        return np.ones(n)
    mass = check_unit(label_mass, "label_mass")
    if len(mass) != n:
        raise InvalidData(f"{len(mass)} label masses for {n} rows")
    return mass


def _log_loss(log_odds: FloatArray, correct: BoolArray) -> FloatArray:
    loss: FloatArray = np.logaddexp(0.0, np.where(correct, -log_odds, log_odds))
    return loss
