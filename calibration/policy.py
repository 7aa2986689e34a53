"""The mathematics of policies: which verdict a decision gets, as pure functions of arrays that name their rule.

A certificate is carried only by a rule whose trusted set is on its list: `Certificate.covers(threshold)` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from demur.calibration.certificate import Certificate
from demur.calibration.errors import PolicyError
from demur.calibration.grid import is_trusted, on_grid, on_grid_one, threshold_above, threshold_below

Rule = Literal["fixed_thresholds", "certified", "expected_cost", "budget"]
TRUST, REVIEW, DEFER = 0, 1, 2
VERDICTS = ("trust", "review", "defer")


@dataclass(frozen=True)
class Ruling:
    """Verdicts of n decisions: `codes`, shape (n,), index VERDICTS; `rule` decided all of them.

    `threshold` is the score trusted from, where the rule has one; `costs`, shape (n, 3), are the expected costs of the
    three verdicts, where the rule weighs costs.
    """

    codes: NDArray[np.int8]
    rule: Rule
    threshold: float | None = None
    costs: NDArray[np.float64] | None = None

    @property
    def verdicts(self) -> list[str]:
        """The verdicts by name."""
        return [VERDICTS[code] for code in self.codes]


def fixed_thresholds(score: ArrayLike, *, trust: float, defer: float) -> Ruling:
    """Trust from `trust` on, defer below `defer`, review in between; `score` of shape (n,).

    PolicyError if a threshold is NaN or `defer` lies above `trust`.
    """
    if np.isnan(trust) or np.isnan(defer) or defer > trust:
        raise PolicyError(f"defer ({defer}) must not lie above trust ({trust})")
    return Ruling(_between(score, trust, defer), "fixed_thresholds", trust)


def certified(score: ArrayLike, trusted: Certificate, not_deferred: Certificate | None = None) -> Ruling:
    """Trust from the loosest threshold certified for trust on; defer what lies below the one certified for answers.

    Without a certified threshold nothing is trusted; without `not_deferred` nothing is deferred by score. `score` has
    shape (n,).
    """
    trust = np.inf if trusted.threshold is None else trusted.threshold
    if not_deferred is None:
        defer = -np.inf
    else:
        # Where the stricter promise reaches further than the looser one, it covers the answers too.
        defer = min(trust, np.inf if not_deferred.threshold is None else not_deferred.threshold)
    return Ruling(_between(score, trust, defer), "certified", trusted.threshold)


def expected_cost(
    probabilities: ArrayLike,
    decision: ArrayLike,
    cost: ArrayLike,
    *,
    review_price: float,
    defer_price: float,
) -> Ruling:
    """Take the verdict of least expected cost.

    Parameters
    ----------
    probabilities : shape (n, K), calibrated, rows sum to 1.
    decision : shape (n,), the option decided for.
    cost : shape (K, K), `cost[i, j]` of acting on option i when j is right; not negative, any unit.
    review_price, defer_price : of one decision, in the same unit.

    Trusting costs `sum_j probabilities[j] * cost[decision, j]`. Equal costs go to the more careful verdict.

    Raises PolicyError for shapes that do not fit, negative costs, prices or values that are not finite.
    """
    p, d, c = np.asarray(probabilities, float), np.asarray(decision), np.asarray(cost, float)
    if p.ndim != 2 or d.shape != p.shape[:1] or not np.issubdtype(d.dtype, np.integer):
        raise PolicyError(f"probabilities have shape {p.shape}, decision {d.shape} ({d.dtype}); need (n, K) and (n,)")
    options = p.shape[1]
    if c.shape != (options, options):
        raise PolicyError(f"cost has shape {c.shape}, but there are {options} options")
    if not np.isfinite(c).all() or (c < 0).any():
        raise PolicyError("cost must be finite and not negative")
    for name, price in (("review_price", review_price), ("defer_price", defer_price)):
        if not np.isfinite(price) or price < 0:
            raise PolicyError(f"{name} is {price}, but must be finite and not negative")
    if not np.isfinite(p).all() or (np.abs(p.sum(axis=1) - 1.0) > 1e-3).any() or (p < 0).any():
        raise PolicyError("probabilities must be finite, not negative, and sum to 1 in each row")
    if ((d < 0) | (d >= options)).any():
        raise PolicyError(f"decision must lie between 0 and {options - 1}")
    trust = np.einsum("nk,nk->n", p, c[d])
    costs = np.column_stack([trust, np.full_like(trust, review_price), np.full_like(trust, defer_price)])
    return Ruling(cheapest(costs), "expected_cost", costs=costs)


def cheapest(costs: ArrayLike) -> NDArray[np.int8]:
    """The verdicts, shape (n,), that cost least, given the expected costs of trust, review and defer, shape (n, 3).

    On the grid, as scores are, so that noise does not choose between equals; of these the more careful one.
    """
    return np.asarray(2 - np.argmin(on_grid(costs)[:, ::-1], axis=1), dtype=np.int8)


def cheapest_one(trust: float, review: float, defer: float) -> int:
    """`cheapest` of one decision, without arrays, for serving. A NaN is no reason to trust."""
    costs = [on_grid_one(cost) for cost in (defer, review, trust)]
    best = 0
    for index in (1, 2):
        if costs[index] < costs[best]:
            best = index
    return 2 - best


def budget_threshold(reference: ArrayLike, to_people: float) -> float:
    """Threshold at which at most a share `to_people` of the reference scores, shape (n,), is not trusted.

    The strictest such one: within the budget, people see as much as they can. PolicyError for a share outside [0, 1],
    or scores that are empty or not finite.
    """
    scores = np.sort(on_grid(reference))
    if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise PolicyError("reference scores must be a non-empty column of finite numbers")
    if not 0.0 <= to_people <= 1.0:
        raise PolicyError(f"the share to people is {to_people!r}, but must lie between 0 and 1")
    allowed = int(np.floor(to_people * scores.size + 1e-9))
    if allowed == scores.size:
        return float(threshold_above(scores[-1]))
    # Everything at or above the first score that must be trusted is; its ties come along.
    return float(threshold_below(scores[allowed]))


def budget(score: ArrayLike, reference: ArrayLike, to_people: float) -> Ruling:
    """Send at most a share `to_people` of traffic like `reference` to people (review), and trust the rest.

    `score` has shape (n,). Errors as `budget_threshold`.
    """
    threshold = budget_threshold(reference, to_people)
    return Ruling(_between(score, threshold, -np.inf), "budget", threshold)


def _between(score: ArrayLike, trust: float, defer: float) -> NDArray[np.int8]:
    scores = np.asarray(score, dtype=np.float64)
    if np.isnan(scores).any():
        raise PolicyError("a score is NaN")
    codes = np.where(is_trusted(scores, trust), TRUST, np.where(is_trusted(scores, defer), REVIEW, DEFER))
    return codes.astype(np.int8)
