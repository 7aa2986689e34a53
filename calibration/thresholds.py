"""Which trusted sets are tested, in which order and with which share of delta: settled before any label is read.

A trusted set is named by its size: the m best scored of the certifying rows, down to the next row's score. Sizes are
chosen where the binomial test is sharpest: at the smallest m that allows k errors, for k = 0, 1, 2, ... Between those
the test is only weaker, and a chain that visits them dies there. Testing at fixed sizes on the rows' own scores is
exactly valid (proved in docs/certificates.md), provided that the sizes do not depend on those scores.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, nbinom

from demur.calibration.grid import on_grid, threshold_above, threshold_below

# The main chain starts small; the other start saves the day where the highest scores are the worst.
MAIN_SHARE = 0.6
OTHER_START, OTHER_SHARE = 0.4, 0.4
# The main start trusts at most this share of the rows, so that a small sample begins small enough.
LARGEST_START = 0.25
# Below this predicted power the usual start is given up for the one of best predicted power.
POOR_POWER = 0.5
MOST_SIZES = 1000
# A score held by this share of the unlabelled rows is a tie that the chain must be able to stop at.
HEAVY_TIE = 0.005


@dataclass(frozen=True)
class ThresholdPlan:
    """What will be tested: trusted sizes, shape (s,), rising, the share of delta each starts with, shape (s,), and
    fixed thresholds, shape (g,), falling, that are tested where they come in between (with no share of their own).
    """

    sizes: NDArray[np.int64]
    shares: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def plan(n: int, alpha: float, delta: float, unlabelled: NDArray[np.float64] | None = None) -> ThresholdPlan:
    """Plan the tests for `n` certifying rows.

    `unlabelled`, shape (u,), are scores of rows that do not certify: they move the main start where it would have
    little power, and name the scores that many rows share. Without them the ties are covered by FIXED_THRESHOLDS.
    """
    start = _usual_start(n, alpha, delta)
    thresholds = FIXED_THRESHOLDS
    if unlabelled is not None:
        scores = np.sort(on_grid(unlabelled))[::-1]
        start = _better_start(start, scores, n, alpha, MAIN_SHARE * delta)
        thresholds = _tie_edges(scores)
    return ThresholdPlan(*_sizes_and_shares(n, alpha, delta, start), thresholds)


def sharpest_size(errors: NDArray[np.int64], alpha: float, level: float) -> NDArray[np.int64]:
    """Smallest number of rows m with `P(Binomial(m, alpha) <= errors) <= level`; the shape of `errors`.

    That is the `1 - level` quantile of the number of rows needed to meet `errors + 1` errors at risk alpha.
    """
    return np.asarray(nbinom.ppf(1.0 - level, errors + 1, alpha), dtype=np.int64) + errors + 1


def _usual_start(n: int, alpha: float, delta: float) -> int:
    """About `3 ln(delta)/ln(1-alpha)` rows, three times the bare minimum: there, one error ends the chain."""
    wanted = min(3 * np.log(delta) / np.log1p(-alpha), LARGEST_START * n)
    return _first_at_least(wanted, alpha, MAIN_SHARE * delta)


def _first_at_least(rows: float, alpha: float, level: float) -> int:
    sizes = sharpest_size(np.arange(32), alpha, level)
    return int(sizes[np.argmax(sizes >= rows)] if (sizes >= rows).any() else sizes[-1])


def _better_start(start: int, scores: NDArray[np.float64], n: int, alpha: float, level: float) -> int:
    """Keep `start` unless the scores, read as probabilities, give it little power and another one more."""
    if scores[0] > 1.0 or scores[-1] < 0.0:
        return start
    errors = np.arange(16)
    sizes = sharpest_size(errors, alpha, level)
    errors, sizes = errors[sizes < n], sizes[sizes < n]
    if sizes.size == 0:
        return start
    ranks = np.clip(np.round(sizes * (scores.size / n)).astype(np.int64), 1, scores.size)
    risk = np.clip((np.cumsum(1.0 - scores) / np.arange(1, scores.size + 1))[ranks - 1], 0.0, 1.0)
    power = binom.cdf(errors, sizes, risk)
    best = int(np.argmax(power))
    usual = power[sizes == start]
    # Scores that are no probabilities predict no power anywhere: they have nothing to say.
    return start if (usual.size and usual[0] >= POOR_POWER) or power[best] < 1e-3 else int(sizes[best])


@lru_cache(maxsize=256)
def _sizes_and_shares(n: int, alpha: float, delta: float, start: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sizes from `start` up, sharpest for the level that a chain unbroken since `start` has there."""
    counts = _error_counts(n, alpha)
    other = round(OTHER_START * n)
    if start >= other:
        # So few rows that both starts would be one: it has all of delta.
        part = sharpest_size(counts, alpha, delta)
        part = part[(part >= part[part <= start].max()) & (part < n)]
        return part, np.eye(1, part.size)[0]
    sizes: list[NDArray[np.int64]] = []
    shares: list[NDArray[np.float64]] = []
    waiting = 0.0
    for begin, end, gain, level in ((start, other, MAIN_SHARE, MAIN_SHARE * delta), (other, n, OTHER_SHARE, delta)):
        waiting += gain
        part = sharpest_size(counts, alpha, level)
        part = part[(part >= begin) & (part < end)]
        if part.size:
            sizes.append(part)
            shares.append(np.append(waiting, np.zeros(part.size - 1)))
            waiting = 0.0
    if waiting and shares:
        # Without a size of its own, the other start adds to the main one.
        shares[-1][0] += waiting
    return np.concatenate(sizes), np.concatenate(shares)


def _error_counts(n: int, alpha: float) -> NDArray[np.int64]:
    """Numbers of allowed errors worth a test: all of the first few hundred, then about MOST_SIZES in all."""
    most = int(np.ceil(alpha * n)) + 1
    if most <= MOST_SIZES:
        return np.arange(most)
    few = MOST_SIZES // 4
    return np.unique(np.concatenate([np.arange(few), np.linspace(few, most, MOST_SIZES - few).astype(np.int64)]))


def _tie_edges(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds just above and just below every score that many rows share; falling."""
    values, counts = np.unique(scores, return_counts=True)
    heavy = values[counts >= max(HEAVY_TIE * scores.size, 3)]
    return np.unique(np.concatenate([threshold_below(heavy), threshold_above(heavy)]))[::-1]


def _fixed_thresholds() -> NDArray[np.float64]:
    """Two an octave of the distance to 0 and to 1, on either side, from 1e-6 to 1e6; falling."""
    distance = 2.0 ** (np.arange(-40, 41) / 2.0)
    return np.unique(threshold_below(np.concatenate([distance, -distance, 1.0 - distance, [0.0, 1.0]])))[::-1]


FIXED_THRESHOLDS = _fixed_thresholds()


def tie_generator(sorted_scores: NDArray[np.float64]) -> np.random.Generator:
    """Randomness for the order of equal scores: a function of the scores alone, so repeatable and blind to labels."""
    digest = hashlib.sha256(np.ascontiguousarray(sorted_scores).tobytes()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
