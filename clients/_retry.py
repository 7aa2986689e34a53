"""When a call is tried again, and after how long."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Statuses that a later attempt may turn into an answer. All other refusals would only be repeated.
RETRIED = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, within the call's deadline.

    Attempt n is followed by a pause drawn from [0, min(cap, base * 2**(n-1))] seconds; a `Retry-After` is waited out
    and the drawn pause added, so that callers refused together do not come back together. A pause that would outlast
    the deadline is not begun: the call ends with the last error.
    """

    attempts: int = 4
    base: float = 0.25
    cap: float = 8.0
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base < 0 or self.cap < 0:
            raise ValueError("attempts must be at least 1, base and cap at least 0")

    def pause(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait after failed attempt number `attempt`, counted from 1."""
        # A float power overflows near 1024 attempts, long after the cap has been reached.
        spread = min(self.cap, self.base * 2.0 ** min(attempt - 1, 64))
        return (retry_after or 0.0) + spread * self.jitter()


def read_retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header, which is a number or an HTTP date; None where it is neither."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
