"""The monitor of a certificate: an e-process on audits that withdraws the certificate once its promise is broken."""

from __future__ import annotations

import copy
import json
import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from demur.calibration.errors import MonitorError
from demur.calibration.risk_bound import average_risk_upper_bound

# Bets: odds of error this many times those at alpha, and the stake on each.
BET_ODDS = np.array([1.4, 2.0, 3.0, 5.0])
BET_STAKES = np.array([0.35, 0.25, 0.15, 0.25])
_LOG_STAKES = np.log(BET_STAKES)
# A new copy of the bets starts every so many audits, so that a good spell does not leave it in debt.
COPY_EVERY = 25
# Missing labels are held against so many audits at least, so that one or two at the beginning starve nothing.
LEAST_SETTLED = 20

State = Literal["valid", "starved", "expired", "withdrawn"]


class Outcome(IntEnum):
    """What became of an audit: labelled (right or wrong), unlabelled past its deadline, or not yet due."""

    CORRECT = 0
    ERROR = 1
    MISSING = 2
    PENDING = 3


def starves(missing: int, settled: int, max_missing: float) -> bool:
    """Whether too many of the audits that are labelled or past their deadline (`settled`) are `missing` a label."""
    return missing / max(settled, LEAST_SETTLED) > max_missing


@dataclass(frozen=True)
class RecentRisk:
    """Error among the last labelled audits, with a 95% interval for a single look: not valid at all times at once."""

    estimate: float | None
    lower: float
    upper: float
    labelled: int
    always_valid: bool = False


class RiskMonitor:
    """E-process against H0: "at every audit the chance of error, given everything before, is at most alpha".

    Audits are taken in the order in which they were drawn. Those without a label count as correct for the
    withdrawal and as errors for the upper bound, so that late or missing labels can delay but never cause a
    withdrawal. When a late label arrives or one is corrected, replay the table: `restored`, or a `copy` kept
    at the oldest pending audit and extended by what follows.

    The process is `W = sum_j w_j E_j`, where copy j starts after 25(j-1) audits with weight `1/(j(j+1))`, each `E_j` is
    a mixture of likelihood ratios of higher risks against alpha since its start, and copies yet to start count 1. The
    certificate is withdrawn once `W >= 1/delta`, which under H0 ever happens with chance at most delta (Ville's
    inequality); start times after Shin, Ramdas and Rinaldo (arXiv:2203.03532). All copies of one bet share their
    factors, so the state is one number a bet.

    Parameters
    ----------
    alpha, delta : those of the certificate; MonitorError outside (0, 1).
    max_missing : share of missing labels, of audits that are due (20 at least), above which the certificate is starved.
    window : number of last audits behind `recent`.
    """

    def __init__(self, alpha: float, delta: float, *, max_missing: float = 0.1, window: int = 200) -> None:
        for name, value in (("alpha", alpha), ("delta", delta), ("max_missing", max_missing)):
            if not 0.0 < value < 1.0:
                raise MonitorError(f"{name} is {value!r}, but must lie strictly between 0 and 1")
        if window < 1:
            raise MonitorError(f"window is {window!r}, but must be at least 1")
        self.alpha, self.delta, self.max_missing = alpha, delta, max_missing
        risk = alpha * BET_ODDS / (1.0 - alpha + alpha * BET_ODDS)
        self._log_error = np.log(risk / alpha)
        self._log_correct = np.log1p(-risk) - np.log1p(-alpha)
        self._log_wealth = np.full(BET_ODDS.size, -np.inf)
        self._best = 0.0
        self._withdrawn = False
        self._bound: float | None = None
        self.log_evalue = 0.0
        self.counts = dict.fromkeys(Outcome, 0)
        self._recent: deque[int] = deque(maxlen=window)

    def update(self, error: bool | None) -> None:
        """Take the next audit: wrong, right, or (None) missing its label."""
        self.extend([Outcome.MISSING if error is None else Outcome(bool(error))])

    def extend(self, outcomes: ArrayLike) -> None:
        """Take audits, in the order drawn: Outcome values, shape (m,). MonitorError for any other value."""
        codes = np.asarray(outcomes)
        if codes.size == 0:
            return
        known = codes.ndim == 1 and codes.dtype.kind in "iub" and codes.min() >= 0 and codes.max() < len(Outcome)
        if not known:
            raise MonitorError("outcomes must be a column of 0 (correct), 1 (error), 2 (missing) or 3 (pending)")
        self._bound = None
        path = self._advance(codes == Outcome.ERROR)
        self.log_evalue = float(path[-1])
        self._best = max(self._best, float(path.max()))
        self._withdrawn = self._withdrawn or self._best >= -math.log(self.delta)
        for outcome, count in enumerate(np.bincount(codes, minlength=len(Outcome)).tolist()):
            self.counts[Outcome(outcome)] += count
        self._recent.extend(codes[-(self._recent.maxlen or 0) :].tolist())

    def _advance(self, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Move the wealth past these audits; log W after each of them, shape (m,)."""
        drawn, m = self.audits, wrong.size
        gains = np.cumsum(np.where(wrong[:, None], self._log_error, self._log_correct), axis=0)
        starts = np.arange(-drawn % COPY_EVERY, m, COPY_EVERY)
        copies = (drawn + starts) // COPY_EVERY + 1.0
        before = np.vstack([np.zeros_like(self._log_wealth), gains])[starts]
        # A copy's wealth is the gain since its start: gains now less gains then.
        stakes = np.vstack([self._log_wealth, -np.log(copies * (copies + 1.0))[:, None] - before])
        begun = np.searchsorted(starts, np.arange(m), side="right")
        wealth = gains + np.logaddexp.accumulate(stakes, axis=0)[begun]
        self._log_wealth = wealth[-1]
        waiting = -np.log((drawn + np.arange(m)) // COPY_EVERY + 2.0)
        path: NDArray[np.float64] = np.logaddexp(np.logaddexp.reduce(wealth + _LOG_STAKES, axis=1), waiting)
        return path

    @property
    def audits(self) -> int:
        """Audits taken so far."""
        return sum(self.counts.values())

    @property
    def withdrawn(self) -> bool:
        """Whether the certificate has been withdrawn; never undone."""
        return self._withdrawn

    @property
    def missing_share(self) -> float:
        """Missing labels as a share of the audits that are due; 0 before any is."""
        due = self.audits - self.counts[Outcome.PENDING]
        return self.counts[Outcome.MISSING] / due if due else 0.0

    @property
    def upper_bound(self) -> float:
        """Always-valid upper bound, at confidence 1 - delta, on the average risk since the certificate."""
        # Kept until the next audit: readers ask far more often than audits come.
        if self._bound is None:
            errors = self.audits - self.counts[Outcome.CORRECT]
            self._bound = float(average_risk_upper_bound(errors, self.audits, self.delta))
        return self._bound

    @property
    def recent(self) -> RecentRisk:
        """Error in the last `window` audits, a Clopper-Pearson interval beside it. Not always valid."""
        errors, right = self._recent.count(Outcome.ERROR), self._recent.count(Outcome.CORRECT)
        n = errors + right
        lower = float(beta.ppf(0.025, errors, right + 1)) if errors else 0.0
        upper = float(beta.ppf(0.975, errors + 1, right)) if right else 1.0
        return RecentRisk(errors / n if n else None, lower, upper, n)

    def state(self, *, expired: bool = False, overdue: bool = False) -> State:
        """State of the certificate: the gravest of what is so.

        `expired`: it is past its expiry; `overdue`: lately too many of its labels are past their deadline.
        """
        if self.withdrawn:
            return "withdrawn"
        if expired:
            return "expired"
        missing, pending = self.counts[Outcome.MISSING], self.counts[Outcome.PENDING]
        return "starved" if overdue or starves(missing, self.audits - pending, self.max_missing) else "valid"

    def copy(self) -> Self:
        """An independent copy, from which a changed tail of the table can be replayed."""
        return copy.deepcopy(self)

    @classmethod
    def restored(
        cls,
        outcomes: ArrayLike,
        alpha: float,
        delta: float,
        *,
        withdrawn: bool = False,
        max_missing: float = 0.1,
        window: int = 200,
    ) -> Self:
        """Recompute from the whole table, shape (m,), in the order drawn; a withdrawal made before stays."""
        monitor = cls(alpha, delta, max_missing=max_missing, window=window)
        monitor.extend(np.asarray(outcomes, dtype=np.int64))
        monitor._withdrawn = monitor._withdrawn or withdrawn
        return monitor

    def to_json(self) -> str:
        """The compact state: a few numbers and the recent window."""
        return json.dumps(
            {
                "alpha": self.alpha,
                "delta": self.delta,
                "max_missing": self.max_missing,
                "window": self._recent.maxlen,
                # Minus infinity, before the first audit, is no JSON.
                "log_wealth": self._log_wealth.tolist() if self.audits else None,
                "log_evalue": self.log_evalue,
                "best": self._best,
                "withdrawn": self._withdrawn,
                "counts": [self.counts[outcome] for outcome in Outcome],
                "recent": list(self._recent),
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Continue from what `to_json` wrote, exactly. MonitorError if it is not that."""
        try:
            saved = json.loads(text)
            monitor = cls(saved["alpha"], saved["delta"], max_missing=saved["max_missing"], window=saved["window"])
            if saved["log_wealth"] is not None:
                monitor._log_wealth = np.array(saved["log_wealth"], dtype=np.float64).reshape(BET_ODDS.size)
            monitor.log_evalue, monitor._best = float(saved["log_evalue"]), float(saved["best"])
            monitor._withdrawn = bool(saved["withdrawn"])
            monitor.counts = dict(zip(Outcome, map(int, saved["counts"]), strict=True))
            monitor._recent.extend(int(code) for code in saved["recent"])
        except MonitorError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise MonitorError(f"not a monitor's state: {error!r}") from error
        return monitor
