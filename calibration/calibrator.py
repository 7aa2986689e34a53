"""What every calibrator is: fitted on log-probabilities and labels, applied to log-probabilities, stored as JSON."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from demur.calibration.arrays import (
    LOG_EPSILON,
    LOG_ZERO,
    FloatArray,
    IntArray,
    check_labels,
    check_logprobs,
    keep_decision,
    normalise,
)
from demur.calibration.errors import (
    InvalidData,
    NotFitted,
    OneClassOnly,
    OneSided,
    OptionsVary,
    TooFewLabels,
)
from demur.calibration.stored import dump

MIN_LABELS = 20


@dataclass(frozen=True)
class FitSummary:
    """What a calibrator was fitted on and what came of it.

    Attributes:
        n: labels used.
        n_options: options per row.
        clipped_zeros: probabilities of exactly zero that were raised to machine epsilon.
        nll_before, nll_after: mean negative log-likelihood of the fitting rows, in nats.
        notes: what a person should know, such as a parameter at its bound.
    """

    n: int
    n_options: int
    clipped_zeros: int
    nll_before: float
    nll_after: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibrator(ABC):
    """Maps label log-probabilities to calibrated probabilities.

    Instances are immutable: `fit` returns a fitted copy. Subclasses declare, and callers may rely on:

    Attributes:
        kind: stable name, used in JSON and reports.
        moves_decision: whether the most probable option may change. Where it may, labels used to fit must not
            certify as well (the label-free route is closed).
        needs_fixed_options: whether a parameter belongs to one particular option, so that the method
            is meaningless for tasks whose options change between decisions.
        fitted: summary of the fit, None before it.
    """

    kind: ClassVar[str]
    moves_decision: ClassVar[bool]
    needs_fixed_options: ClassVar[bool]

    fitted: FitSummary | None = None

    def fit(self, logprobs: npt.ArrayLike, labels: npt.ArrayLike, *, options_vary: bool = False) -> Self:
        """Return a copy fitted by maximum likelihood (or as the class says).

        Args:
            logprobs: [n, K], log-probabilities of the options up to a constant per row; `-inf` is an exact zero.
            labels: [n], gold option indices.
            options_vary: whether the options differ between rows, so that an index has no meaning of its own.

        Raises:
            InvalidData: NaN, `+inf`, a label outside the options, lengths that differ, no rows.
            OptionsVary: `options_vary` and the method needs fixed options.
            TooFewLabels: fewer than 20 rows.
            OneClassOnly: every label is the same option.
            OneSided: every most probable option is right, or every one wrong.
        """
        logp, zeros = check_logprobs(logprobs)
        y = check_labels(labels, *logp.shape)
        self.require_options(options_vary)
        require_labels(logp, y, options_vary)
        fitted, notes = self.estimate(logp, y)
        if zeros:
            notes = (*notes, f"{zeros} probabilities of exactly zero were raised to {np.exp(LOG_EPSILON):.1e}")
        before, after = mean_nll(np.exp(logp), y), mean_nll(fitted.apply(logp), y)
        return replace(fitted, fitted=FitSummary(len(y), logp.shape[1], zeros, before, after, notes))

    def transform(self, logprobs: npt.ArrayLike) -> FloatArray:
        """Return [n, K] calibrated probabilities; rows sum to one.

        Unless `moves_decision`, the first most probable option of every row stays the first most probable one, even
        where rounding would make it tie.

        Args:
            logprobs: [n, K], as for `fit`.

        Raises:
            NotFitted: before `fit`.
            InvalidData: NaN, `+inf`, or another number of options than fitted where that matters.
        """
        self._require_fit(np.shape(logprobs)[-1] if np.ndim(logprobs) else 0)
        logp, _ = check_logprobs(logprobs)
        p = self.apply(logp)
        if not self.moves_decision:
            keep_decision(p, logp.argmax(axis=1))
        return p

    def transform_one(self, logprobs: npt.ArrayLike) -> FloatArray:
        """`transform` of one decision, [K] to [K]: the same arithmetic with the cheapest checks, for serving."""
        row = np.asarray(logprobs, dtype=np.float64)
        if row.ndim != 1 or len(row) < 2:
            raise InvalidData(f"logprobs must have shape [K] with K >= 2, not {list(row.shape)}")
        self._require_fit(len(row))
        decision = row.argmax()
        # NaN and infinities make the spread NaN or infinite; the slow path explains or clips them, and decides near
        # the limit.
        if not float(row[decision]) - float(row.min()) <= -0.5 * LOG_ZERO:
            p = self.transform(row[None])
            return p.reshape(-1)
        p = self.apply(normalise(row[None], np.array([decision])))
        if not self.moves_decision and p[0].argmax() != decision:
            keep_decision(p, np.array([decision]))
        return p.reshape(-1)

    @abstractmethod
    def estimate(self, logp: FloatArray, labels: IntArray, /) -> tuple[Self, tuple[str, ...]]:
        """Fit on arrays that were checked and normalised already; returns the fitted copy and notes on the fit."""

    @abstractmethod
    def apply(self, logp: FloatArray) -> FloatArray:
        """Map [n, K] normalised, finite log-probabilities to a new array of probabilities."""

    @abstractmethod
    def n_parameters(self, n_options: int, /) -> int:
        """Numbers learned from the labels: what the simplicity margin of selection orders by."""

    def require_options(self, options_vary: bool) -> None:
        """Raise `OptionsVary` where the method cannot be used for a task whose options vary."""
        if options_vary and self.needs_fixed_options:
            raise OptionsVary(f"{self.kind} learns a parameter per option, but this task's options vary")

    def to_json(self) -> str:
        """Return one JSON object that `calibrator_from_json` restores exactly."""
        return dump(self)

    def _require_fit(self, n_options: int) -> None:
        if self.fitted is None:
            raise NotFitted(f"{type(self).__name__} is not fitted; call fit(logprobs, labels) first")
        if self.needs_fixed_options and n_options != self.fitted.n_options:
            raise InvalidData(f"{self.kind} was fitted on {self.fitted.n_options} options, not {n_options}")


def require_labels(logp: FloatArray, labels: IntArray, options_vary: bool) -> None:
    """Raise the refusal that names what is missing, if labels are too few or one-sided."""
    n = len(labels)
    if n < MIN_LABELS:
        raise TooFewLabels(f"{n} labels; at least {MIN_LABELS} are needed, {MIN_LABELS - n} more")
    # Where options vary, an index names no class: gold answers may well be listed first every time.
    if not options_vary and (labels == labels[0]).all():
        raise OneClassOnly(f"all {n} labels are option {labels[0]}; labels of at least one other option are needed")
    correct = int((logp.argmax(axis=1) == labels).sum())
    if correct in (0, n):
        seen, missing = ("right", "wrong") if correct else ("wrong", "right")
        raise OneSided(f"all {n} decisions are {seen}; at least one {missing} decision is needed")


def mean_nll(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean negative log-likelihood of checked arrays, clipped at machine epsilon."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.exp(LOG_EPSILON))).mean())
