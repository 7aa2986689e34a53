"""The process of one certificate: its audits in the order drawn, whenever and in whatever order their labels come."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from demur.calibration import Outcome, RiskMonitor
from demur.calibration.monitor import State, starves

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
    """

    def __init__(self, alpha: float, delta: float, *, max_missing: float = 0.1, withdrawn: bool = False) -> None:
        self._seqs, self._due, self._codes = array("q"), array("d"), bytearray()
        # Everything before the oldest audit that waits for its label; the rest is replayed from there.
        self._settled = RiskMonitor.restored([], alpha, delta, max_missing=max_missing, withdrawn=withdrawn)
        self._monitor: RiskMonitor | None = self._settled
        self._overdue = False
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
        place = bisect_left(self._seqs, seq)
        if place == len(self._seqs) or self._seqs[place] != seq or self._codes[place] == wrong:
            return
        if self._codes[place] == Outcome.ERROR:
            self._replay()  # what this error has withdrawn stays withdrawn
        self._take(place, Outcome(wrong))

    def expire(self, now: float) -> None:
        """Count unlabelled audits that were due by `now` as missing. Their labels are still welcome."""
        late = [place for place in self._waiting if self._due[place] <= now]
        for place in late:
            self._take(place, Outcome.MISSING)

    def restore(self, rows: Iterable[tuple[int, float, bool | None]]) -> None:
        """Take the table: sequence number, due time and whether the label says wrong (None: unlabelled), in order."""
        for seq, due, wrong in rows:
            self.drawn(seq, due)
            if wrong is not None:
                self.labelled(seq, wrong)

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
