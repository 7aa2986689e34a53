"""Calibrators of the decision's confidence alone: Platt and beta.

They map the top option's probability to the chance that it is right (top-label calibration, Gupta and Ramdas 2022) and
share what is left among the others in the proportions of the temperature-scaled row: an overconfident model is
overconfident about its runner-up too. No option has a parameter of its own, so they fit tasks whose options vary. The
row's likelihood splits into confidence and the rest, so each part is fitted alone.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import special

from demur.calibration.arrays import EPSILON, BoolArray, FloatArray, IntArray, check_logprobs
from demur.calibration.calibrator import Calibrator
from demur.calibration.logistic import fit_logistic
from demur.calibration.temperature import fit_inverse_temperature, softmax


@dataclass(frozen=True, eq=False, kw_only=True)
class TopLabelCalibrator(Calibrator):
    """Shared part: split a row into its top option and the rest, and put it together again.

    The decision is kept: where the calibrated confidence is below the runner-up's share, the row's top probability is
    lifted to a tie, while `confidence` still says what was measured.
    """

    moves_decision = False
    needs_fixed_options = False

    rest_temperature: float = 1.0

    def confidence(self, logprobs: npt.ArrayLike) -> FloatArray:
        """Return [n] calibrated chances that the most probable option is right, monotone in its probability.

        Args and errors as for `transform`.
        """
        self._require_fit(0)
        logp, _ = check_logprobs(logprobs)
        log_top, log_rest, _ = _split(logp)
        return self._bounded(log_top, log_rest)

    def estimate(self, logp: FloatArray, labels: IntArray, /) -> tuple[Self, tuple[str, ...]]:
        """Fit confidence to correctness."""
        log_top, log_rest, _ = _split(logp)
        fitted, notes = self.estimate_confidence(log_top, log_rest, logp.argmax(axis=1) == labels)
        if logp.shape[1] > 2:
            fitted = replace(fitted, rest_temperature=1.0 / fit_inverse_temperature(logp, labels)[0])
        return fitted, notes

    def apply(self, logp: FloatArray) -> FloatArray:
        """Calibrate the top probability and rescale the rest."""
        log_top, log_rest, decided = _split(logp)
        rows = np.arange(len(logp))
        shares = logp * (1.0 / self.rest_temperature)
        shares[rows, decided] = -np.inf
        shares = softmax(shares)
        runner_up = shares.max(axis=1)
        top = np.maximum(self._bounded(log_top, log_rest), runner_up / (1.0 + runner_up))
        shares *= (1.0 - top)[:, None]
        shares[rows, decided] = top
        return shares

    def _bounded(self, log_top: FloatArray, log_rest: FloatArray) -> FloatArray:
        bounded: FloatArray = np.maximum(np.minimum(self.map_confidence(log_top, log_rest), 1.0 - EPSILON), EPSILON)
        return bounded

    @abstractmethod
    def estimate_confidence(
        self, log_top: FloatArray, log_rest: FloatArray, correct: BoolArray
    ) -> tuple[Self, tuple[str, ...]]:
        """Fit on [n] log p, log(1 - p) of the top option and whether it was right."""

    @abstractmethod
    def map_confidence(self, log_top: FloatArray, log_rest: FloatArray) -> FloatArray:
        """Map [n] log p and log(1 - p) of the top option to its calibrated probability."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PlattScaling(TopLabelCalibrator):
    """expit(slope * log-odds + intercept) of the top option (Platt 1999).

    Fitted to Platt's smoothed targets, so that separable data stay finite. A slope below zero would rank the
    surest decisions last; it is cut at zero, which leaves the base rate.

    Attributes:
        rest_temperature: of the other options' shares.
        slope: on the log-odds; one changes nothing.
        intercept: in log-odds.
    """

    kind = "platt"

    slope: float = 1.0
    intercept: float = 0.0

    def estimate_confidence(
        self, log_top: FloatArray, log_rest: FloatArray, correct: BoolArray
    ) -> tuple[Self, tuple[str, ...]]:
        """Fit slope and intercept."""
        slope, intercept = fit_platt(log_top - log_rest, correct)
        notes = () if slope > 0.0 else ("confidence ranks errors no better than chance: only the base rate was kept",)
        return replace(self, slope=slope, intercept=intercept), notes

    def map_confidence(self, log_top: FloatArray, log_rest: FloatArray) -> FloatArray:
        """The sigmoid."""
        return platt(log_top - log_rest, self.slope, self.intercept)

    def n_parameters(self, n_options: int, /) -> int:
        """Two, and the temperature of the rest where there is a rest."""
        return 2 + (n_options > 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class BetaCalibration(TopLabelCalibrator):
    """expit(a log p - b log(1 - p) + c) of the top option, a, b >= 0 (Kull, Silva Filho and Flach 2017).

    Attributes:
        rest_temperature: of the other options' shares.
        a, b: weights of the two logarithms; ones change nothing, and neither is negative, so the map is monotone.
        c: intercept, in log-odds.
        prior_strength: of a Gaussian prior around the identity; it only matters where the data are separable.
    """

    kind = "beta"

    prior_strength: float = 0.01
    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def estimate_confidence(
        self, log_top: FloatArray, log_rest: FloatArray, correct: BoolArray
    ) -> tuple[Self, tuple[str, ...]]:
        """Fit the three; a weight that comes out negative is set to zero and the others are fitted again."""
        columns = np.stack((log_top, -log_rest, np.ones_like(log_top)), axis=1)
        keep = [0, 1, 2]
        while True:
            weights = np.zeros(3)
            weights[keep] = fit_logistic(
                columns[:, keep],
                correct.astype(np.float64),
                centre=np.array([1.0, 1.0, 0.0])[keep],
                prior_strength=self.prior_strength,
            )
            if (weights[:2] >= 0.0).all():
                break
            keep.remove(int(weights[:2].argmin()))
        a, b, c = (float(w) for w in weights)
        flat = a == b == 0.0
        notes = ("confidence ranks errors no better than chance: only the base rate was kept",) if flat else ()
        return replace(self, a=a, b=b, c=c), notes

    def map_confidence(self, log_top: FloatArray, log_rest: FloatArray) -> FloatArray:
        """The beta map."""
        mapped: FloatArray = special.expit(self.a * log_top - self.b * log_rest + self.c)
        return mapped

    def n_parameters(self, n_options: int, /) -> int:
        """Three, and the temperature of the rest where there is a rest."""
        return 3 + (n_options > 2)


def fit_platt(log_odds: FloatArray, correct: BoolArray) -> tuple[float, float]:
    """Slope (>= 0) and intercept of Platt's sigmoid, with his smoothed targets."""
    n_right = int(correct.sum())
    n_wrong = len(correct) - n_right
    targets = np.where(correct, (n_right + 1.0) / (n_right + 2.0), 1.0 / (n_wrong + 2.0))
    columns = np.stack((log_odds, np.ones_like(log_odds)), axis=1)
    slope, intercept = fit_logistic(columns, targets)
    if slope > 0.0:
        return float(slope), float(intercept)
    return 0.0, float(special.logit(targets.mean()))


def platt(log_odds: FloatArray, slope: float, intercept: float) -> FloatArray:
    """Platt's sigmoid."""
    mapped: FloatArray = special.expit(slope * log_odds + intercept)
    return mapped


def _split(logp: FloatArray) -> tuple[FloatArray, FloatArray, IntArray]:
    """log p of the top option, log(1 - p) to full precision near p = 1, and which option it is."""
    decided = logp.argmax(axis=1)
    rows = np.arange(len(logp))
    log_top = logp[rows, decided]
    others = logp.copy()
    others[rows, decided] = -np.inf
    largest = others.max(axis=1)
    log_rest = largest + np.log(np.exp(others - largest[:, None]).sum(axis=1))
    return log_top, log_rest, decided
