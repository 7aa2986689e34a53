"""Planning audits: how many labels a day, and how soon a broken promise is found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from demur.calibration.errors import MonitorError
from demur.calibration.monitor import BET_ODDS, BET_STAKES, COPY_EVERY

_STREAMS = 400
# Medians beyond this many audits per 1/alpha are reported as not found.
_HORIZON = 1000
GOOD_SPELL = 100  # audits per 1/alpha at half the promised risk: 2,000 at alpha = .05


def delays(risks: NDArray[np.float64], alpha: float, delta: float, *, streams: int, seed: int = 0) -> NDArray[np.int64]:
    """Audits until withdrawal in independent streams whose risk at audit t is `risks[t]`, shape (T,); T + 1 if never.

    Runs the process of `RiskMonitor` on all streams at once; shape (streams,).
    """
    rng = np.random.default_rng(seed)
    risk = alpha * BET_ODDS / (1.0 - alpha + alpha * BET_ODDS)
    on_error, on_correct = risk / alpha, (1.0 - risk) / (1.0 - alpha)
    wealth = np.zeros((streams, BET_ODDS.size))
    found = np.full(streams, len(risks) + 1, dtype=np.int64)
    for t, chance in enumerate(risks.tolist()):
        started = t // COPY_EVERY + 1
        if t % COPY_EVERY == 0:
            wealth += 1.0 / (started * (started + 1.0))
        wealth *= np.where(rng.random((streams, 1)) < chance, on_error, on_correct)
        hit = (wealth @ BET_STAKES + 1.0 / (started + 1.0) >= 1.0 / delta) & (found > t)
        found[hit] = np.minimum(found[hit], t + 1)
        # A stream found is finished; left running, its wealth would overflow.
        wealth[found <= t + 1] = 0.0
        if (found <= t + 1).all():
            break
    return found


@lru_cache(maxsize=64)
def median_delay(factor: float, alpha: float, delta: float, *, good_spell: int = 0) -> int | None:
    """Median audits from a rise of the risk to `factor * alpha` until withdrawal; None where it is out of reach.

    Before the rise, `good_spell` audits at `alpha / 2`. Simulated on 400 streams with a fixed seed; streams that were
    withdrawn before the rise are left out.
    """
    after = int(_HORIZON / alpha)
    risks = np.concatenate([np.full(good_spell, alpha / 2), np.full(after, min(factor * alpha, 1.0))])
    found = delays(risks, alpha, delta, streams=_STREAMS)
    late = found[found > good_spell] - good_spell
    median = float(np.median(late))
    return None if median > after else int(np.ceil(median))


@dataclass(frozen=True)
class AuditPlan:
    """What an audit rate buys. Days are medians; None where the rise would not be found.

    `smallest_useful_rate` finds a doubled risk within `within_days`, starting fresh; None if no rate up to 1 does.
    """

    labels_per_day: float
    days_to_doubled: float | None
    days_to_fourfold: float | None
    days_to_doubled_after_good: float | None
    days_to_fourfold_after_good: float | None
    smallest_useful_rate: float | None
    within_days: float


def audit_plan(
    per_day: float, rate: float, *, alpha: float = 0.05, delta: float = 0.05, within_days: float = 30.0
) -> AuditPlan:
    """Labels a day and days to catch a doubled and a fourfold risk, for `per_day` trusted decisions audited at `rate`.

    Raises MonitorError for a rate outside (0, 1], levels outside (0, 1), or numbers that are not positive.
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise MonitorError(f"{name} is {value!r}, but must lie strictly between 0 and 1")
    if not 0.0 < rate <= 1.0:
        raise MonitorError(f"rate is {rate!r}, but must lie in (0, 1]")
    if not (0.0 < per_day < np.inf and 0.0 < within_days < np.inf):
        raise MonitorError("per_day and within_days must be positive and finite")
    labels = per_day * rate
    spell = int(GOOD_SPELL / alpha)

    def days(factor: float, good_spell: int = 0) -> float | None:
        audits = median_delay(factor, alpha, delta, good_spell=good_spell)
        return None if audits is None else audits / labels

    doubled = median_delay(2.0, alpha, delta)
    useful = None if doubled is None else doubled / (per_day * within_days)
    return AuditPlan(
        labels_per_day=labels,
        days_to_doubled=days(2.0),
        days_to_fourfold=days(4.0),
        days_to_doubled_after_good=days(2.0, spell),
        days_to_fourfold_after_good=days(4.0, spell),
        smallest_useful_rate=useful if useful is not None and useful <= 1.0 else None,
        within_days=within_days,
    )
