"""Distributions of (score, correct) whose true risk is known at every threshold, for simulations of certificates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CELLS = 400_000


@dataclass(frozen=True)
class ScoreModel:
    """`draw_score(rng, n)` gives scores in [0, 1]; `chance(score)` is the chance that the decision is right.

    The true risk and coverage are tabulated on 400,000 scores at equal steps of the distribution's `quantile`.
    """

    name: str
    quantile: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    chance: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def draw(self, rng: np.random.Generator, n: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Scores, shape (n,), and whether each decision is right, shape (n,)."""
        score = self.quantile(rng.random(n))
        return score, rng.random(n) < self.chance(score)

    def table(self) -> Truth:
        """Tabulate the truth."""
        u = (np.arange(_CELLS) + 0.5) / _CELLS
        score = np.sort(self.quantile(u))
        wrong = 1.0 - self.chance(score)
        return Truth(score, np.cumsum(wrong[::-1])[::-1])


@dataclass(frozen=True)
class Truth:
    """Equally likely scores, rising, and the summed chance of error from each one up."""

    score: NDArray[np.float64]
    error_above: NDArray[np.float64]

    def risk_and_coverage(self, threshold: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """True error among scores >= threshold, and the share of them; NaN thresholds trust nothing."""
        t = np.asarray(threshold, dtype=np.float64)
        first = np.searchsorted(np.round(self.score, 6), np.where(np.isnan(t), np.inf, t), side="left")
        count = self.score.size - first
        total = np.append(self.error_above, 0.0)[first]
        return np.where(count > 0, total / np.maximum(count, 1), 0.0), count / self.score.size

    def oracle_coverage(self, alpha: float) -> float:
        """The largest coverage of any threshold whose risk is at most alpha."""
        count = np.arange(self.score.size, 0, -1)
        ends = np.append(True, np.diff(np.round(self.score, 6)) > 0)
        good = ends & (self.error_above / count <= alpha)
        return float(count[np.argmax(good)] / self.score.size) if good.any() else 0.0


def beta_model(a: float, b: float) -> ScoreModel:
    """Calibrated scores from Beta(a, b)."""
    from scipy.stats import beta

    grid = np.linspace(0.0, 1.0, 20_001)
    # An even table in u would blur the ends of a heavy-tailed Beta: use one that is fine where its density is.
    u = np.concatenate([np.geomspace(1e-9, 1e-3, 2000), grid[21:-21], 1.0 - np.geomspace(1e-3, 1e-9, 2000)])
    x = beta.ppf(u, a, b)
    return ScoreModel(f"Beta({a:g}, {b:g})", lambda v: np.interp(v, u, x), lambda s: s)


def worst_on_top(model: ScoreModel, share: float, wrong: float) -> ScoreModel:
    """`model`, of which the `share` best scored are wrong with chance `wrong`."""
    edge = float(model.quantile(np.array([1.0 - share]))[0])
    return ScoreModel(
        f"{model.name}, top {share:.0%} wrong {wrong:.0%}",
        model.quantile,
        lambda s: np.where(s >= edge, 1.0 - wrong, model.chance(s)),
    )


def flat_model(risk: float) -> ScoreModel:
    """A score that says nothing: the risk is the same everywhere."""
    return ScoreModel("worthless score", lambda v: v, lambda s: np.full(s.shape, 1.0 - risk))


def tied_model(alpha: float) -> ScoreModel:
    """Five distinct scores, non-monotone risk: the sets from .9, .5 and .1 up are false, from .99 and .7 true."""
    values = np.array([0.1, 0.5, 0.7, 0.9, 0.99])
    edges = np.array([0.25, 0.45, 0.65, 0.85])  # cumulated shares .25, .2, .2, .2, .15
    # Errors per score such that the sets have risk .5, 1.02, .98, 1.02, 1.05 of alpha, from the top.
    sizes, target = np.array([0.15, 0.2, 0.2, 0.2, 0.25]), np.array([0.5, 1.02, 0.98, 1.02, 1.05]) * alpha
    total = np.cumsum(sizes) * target
    risk = (np.diff(total, prepend=0.0) / sizes)[::-1]
    return ScoreModel(
        "ties, non-monotone",
        lambda v: values[np.searchsorted(edges, v, side="right")],
        lambda s: 1.0 - risk[np.searchsorted(values, s)],
    )


def heavy_tail_model(alpha: float) -> ScoreModel:
    """Scores crowded at 1 - 10^-6..1, risk exactly above alpha below the crowd and right at alpha inside it."""
    return ScoreModel(
        "heavy tail",
        lambda v: 1.0 - 10.0 ** (-6.0 * v),
        lambda s: 1.0 - alpha * np.where(s > 0.999, 0.9, 1.15),
    )
