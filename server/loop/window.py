"""Live calibration of a task: its last labelled audits, weighted so that they stand for the traffic.

Decisions are drawn at a rate that depends on the verdict, so each counts with the inverse of its rate. Labels that
somebody chose to give belong to no audit and never come here.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 1_000
#: Below so many labelled audits no estimate is shown.
LEAST = 50
_BINS = 10
_SIMULATIONS = 500
#: Share of windows of a perfectly calibrated model that pass the limit.
_ABOVE = 0.01


@dataclass(frozen=True, slots=True)
class LabelledAudit:
    """One audit: its number, chance of being drawn, whether the decision was right, and what was said of it.

    `brier` is the squared distance of the probabilities to the label, summed over options.
    """

    seq: int
    rate: float
    correct: bool
    p_correct: float | None
    brier: float


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Audits whose `p_correct` lies in a tenth of [0, 1] that begins at `low`.

    `p_correct` is their mean, `accuracy` the share of them that was right, both weighted to stand for the traffic.
    """

    low: float
    p_correct: float
    accuracy: float
    audits: int


@dataclass(frozen=True, slots=True)
class LiveCalibration:
    """Estimates over a window. `noise_floor`: the mean `ece` of a perfectly calibrated model of these confidences.

    `ece_limit`: what such a model passes in one window of a hundred.
    Those of the confidence are None, and there is no bin, without `p_correct`.
    """

    labelled: int
    accuracy: float
    brier: float
    ece: float | None = None
    debiased: float | None = None
    noise_floor: float | None = None
    ece_limit: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()


class CalibrationWindow:
    """The last `size` labelled audits in the order drawn. What it holds does not depend on when labels came."""

    def __init__(self, size: int = WINDOW) -> None:
        self._size = size
        self._seqs: list[int] = []
        self._rows: dict[int, LabelledAudit] = {}

    def add(self, row: LabelledAudit) -> None:
        """Take a labelled audit, or its correction."""
        if row.seq in self._rows:
            self._rows[row.seq] = row
            return
        full = len(self._seqs) == self._size
        if full and row.seq < self._seqs[0]:
            return
        self._seqs.insert(bisect_left(self._seqs, row.seq), row.seq)
        self._rows[row.seq] = row
        if full:
            del self._rows[self._seqs.pop(0)]

    def __len__(self) -> int:
        return len(self._seqs)

    def read(self) -> LiveCalibration | None:
        """The estimates; None while there are too few labels."""
        if len(self._seqs) < LEAST:
            return None
        return live_calibration(self._rows[seq] for seq in self._seqs)


def live_calibration(audits: Iterable[LabelledAudit]) -> LiveCalibration:
    """Estimates over some audits (at least one), each counting with the inverse of its rate."""
    rows = list(audits)
    weight = 1.0 / np.array([row.rate for row in rows])
    correct = np.array([row.correct for row in rows], dtype=np.float64)
    brier = np.array([row.brier for row in rows])
    accuracy, mean_brier = (float(np.average(column, weights=weight)) for column in (correct, brier))
    if any(row.p_correct is None for row in rows):
        return LiveCalibration(len(rows), accuracy, mean_brier)
    confidence = np.array([row.p_correct for row in rows], dtype=np.float64)
    order = np.argsort(confidence, kind="stable")
    confidence, correct, weight = confidence[order], correct[order], weight[order]
    starts = _bins(confidence, weight)
    # One seed for all, so that processes that hold the same rows show the same number.
    perfect = np.random.default_rng(0).random((_SIMULATIONS, len(rows))) < confidence
    by_chance = _ece(confidence - perfect, weight, starts)
    return LiveCalibration(
        len(rows),
        accuracy,
        mean_brier,
        ece=float(_ece(confidence - correct, weight, starts)),
        debiased=_debiased(confidence - correct, weight, starts),
        noise_floor=float(by_chance.mean()),
        ece_limit=float(np.quantile(by_chance, 1 - _ABOVE, method="higher")),
        reliability=tuple(_reliability(confidence, correct, weight)),
    )


def _reliability(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], weight: NDArray[np.float64]
) -> Iterator[ReliabilityBin]:
    """Bins of equal width, so that each means the same at all times; those without an audit are left out."""
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    for place in np.unique(bins):
        inside = bins == place
        said, right = (float(np.average(column[inside], weights=weight[inside])) for column in (confidence, correct))
        yield ReliabilityBin(place / _BINS, said, right, int(inside.sum()))


def _bins(confidence: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where bins of about equal weight begin in sorted confidences; equal ones stay together."""
    share = np.cumsum(weight) / weight.sum()
    edges = confidence[np.searchsorted(share, np.arange(1, _BINS) / _BINS).clip(max=len(share) - 1)]
    starts = np.unique(np.searchsorted(confidence, edges, side="right"))
    return np.concatenate([[0], starts[(starts > 0) & (starts < len(confidence))]])


def _ece(gap: NDArray[np.float64], weight: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Over the last axis: the mean, by weight, of |mean gap| of its bin."""
    sums = np.add.reduceat(gap * weight, starts, axis=-1)
    return np.asarray(np.abs(sums).sum(axis=-1) / weight.sum())


def _debiased(gap: NDArray[np.float64], weight: NDArray[np.float64], starts: NDArray[np.int64]) -> float:
    """Root mean square gap of the bins less what sampling adds to it; bins of one audit are left out."""
    count = np.diff(np.append(starts, len(gap)))
    total = np.add.reduceat(weight, starts)
    mean = np.add.reduceat(gap * weight, starts) / total
    spread = np.add.reduceat(weight**2 * (gap - np.repeat(mean, count)) ** 2, starts) / total**2
    used = count > 1
    noise = spread[used] * count[used] / (count[used] - 1)
    return float(np.sqrt(max(0.0, (total[used] * (mean[used] ** 2 - noise)).sum() / total.sum())))
