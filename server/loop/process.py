"""The process of one certificate: its audits in the order drawn, whenever and in whatever order their labels come."""

import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from demur.calibration import Outcome, RiskMonitor
from demur.calibration.monitor import State, starves

#: An audit of the table: sequence number, due time (seconds since 1970, None: erased before that), whether its label
#: says wrong (None: unlabelled).
Row = tuple[int, float | None, bool | None]

#: The last audits, labelled or past their deadline, of which too many may not be without a label.
_LAST_SETTLED = 200
_PENDING = bytes([Outcome.PENDING])


class GuaranteeProcess:
    """A `RiskMonitor` over the audits of a certificate.

    `drawn` takes audits in the order of their sequence numbers, `labelled` their labels in the order in which they
    were given, also again and corrected; taking an event twice changes nothing. What the monitor says is a function
    of the table alone, except that a withdrawal stays: it is looked for before a correction makes an error undone.

    An audit that is not labelled counts as correct for the withdrawal and as an error for the upper bound. So neither
    the order of labels nor how far the sequence of audits had come when one was applied changes what is withdrawn.

    One that was erased before its label was due counts as pending for good, and so is never missing. It is not left
    out: an erasure does not know whether the decision was right, but when labels come may depend on it. Where errors
    are labelled at once and right decisions late, what is erased without a label was right, and errors would be left.
    One erased after its label was due stays missing, or a short retention would hide that labels stopped.
    """

    def __init__(self, alpha: float, delta: float, *, max_missing: float = 0.1, withdrawn: bool = False) -> None:
        self._seqs, self._due, self._codes = array("q"), array("d"), bytearray()
        # Everything before the oldest audit that waits for its label; the rest is replayed from there.
        self._settled = RiskMonitor.restored([], alpha, delta, max_missing=max_missing, withdrawn=withdrawn)
        self._monitor: RiskMonitor | None = self._settled
        self._overdue, self._now = False, -math.inf
        self._waiting = array("q")
        #: Grows whenever what is known changes.
        self.revision = 0

    def drawn(self, seq: int, due: float) -> None:
        """Take the audit `seq`, whose label is due at `due` (seconds since 1970)."""
        if self._seqs and seq <= self._seqs[-1]:
            return
        self._waiting.append(len(self._codes))
        self._seqs.append(seq)
        self._due.append(due)
        self._codes.append(Outcome.PENDING)
        self._monitor = None
        self.revision += 1

    def labelled(self, seq: int, wrong: bool) -> None:
        """Take the label of the audit `seq`, or its correction. Audits of other certificates are passed over."""
        place = self._place(seq)
        if place is None or self._codes[place] == wrong:
            return
        if self._codes[place] == Outcome.ERROR:
            self._replay()  # what this error has withdrawn stays withdrawn
        self._take(place, Outcome(wrong))

    def let_go(self, seq: int) -> None:
        """Await no label of the audit `seq`, which was erased before that was due. Others are passed over."""
        place = self._place(seq)
        if place is not None and self._codes[place] in (Outcome.MISSING, Outcome.PENDING):
            self._take(place, Outcome.PENDING)

    def expire(self, now: float) -> None:
        """Count unlabelled audits that were due by `now`, and no others, as missing. Their labels are still welcome."""
        if now < self._now:
            self._await_again(now)
        self._now = now
        late = [place for place in self._waiting if self._due[place] <= now]
        for place in late:
            self._take(place, Outcome.MISSING)

    def restore(self, rows: Iterable[Row]) -> None:
        """Take the table, in the order drawn."""
        for seq, due, wrong in rows:
            self.drawn(seq, math.inf if due is None else due)
            if wrong is not None:
                self.labelled(seq, wrong)
            elif due is None:
                self.let_go(seq)

    @property
    def monitor(self) -> RiskMonitor:
        """The monitor of all audits so far; to be read only."""
        return self._replay()

    def state(self, *, expired: bool) -> State:
        """State of the certificate, for labels missing as of the last `expire`."""
        return self._replay().state(expired=expired, overdue=self._overdue)

    def count(self, outcome: Outcome) -> int:
        """Audits with this outcome."""
        return self._replay().counts[outcome]

    def __len__(self) -> int:
        return len(self._codes)

    def _await_again(self, now: float) -> None:
        """The clock was ahead for a while: what is not due yet is not missing."""
        early = (self._outcomes(0, len(self._codes)) == Outcome.MISSING) & (np.array(self._due) > now)
        for place in np.flatnonzero(early).tolist():
            self._take(place, Outcome.PENDING)
            insort(self._waiting, place)

    def _place(self, seq: int) -> int | None:
        place = bisect_left(self._seqs, seq)
        return place if place < len(self._seqs) and self._seqs[place] == seq else None

    def _take(self, place: int, outcome: Outcome) -> None:
        self._codes[place] = outcome
        index = bisect_left(self._waiting, place)
        if index < len(self._waiting) and self._waiting[index] == place:
            del self._waiting[index]
        if place < self._settled.audits:
            self._settled = self._begin()
        self._monitor = None
        self.revision += 1

    def _replay(self) -> RiskMonitor:
        if self._monitor is None:
            until = self._waiting[0] if self._waiting else len(self._codes)
            done = self._settled.audits
            if done < until:
                self._settled.extend(self._outcomes(done, until))
            self._monitor = self._settled
            if until < len(self._codes):
                self._monitor = self._settled.copy()
                self._monitor.extend(self._outcomes(until, len(self._codes)))
            if self._monitor.withdrawn and not self._settled.withdrawn:
                self._settled = self._begin(withdrawn=True)
            self._overdue = self._last_starve()
        return self._monitor

    def _last_starve(self) -> bool:
        """Whether labels stopped: after a long good history a share of all audits takes weeks to say so."""
        last = self._codes.translate(None, _PENDING)[-_LAST_SETTLED:]
        return starves(last.count(Outcome.MISSING), len(last), self._settled.max_missing)

    def _outcomes(self, first: int, last: int) -> NDArray[np.uint8]:
        return np.frombuffer(bytes(self._codes[first:last]), dtype=np.uint8)

    def _begin(self, *, withdrawn: bool = False) -> RiskMonitor:
        """A monitor of nothing yet, with the withdrawal that was."""
        old = self._settled
        return RiskMonitor.restored(
            [], old.alpha, old.delta, max_missing=old.max_missing, withdrawn=withdrawn or old.withdrawn
        )
