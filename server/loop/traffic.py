"""Drift of a task: the last decisions of this process against the rows that its bundle was made from."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demur.calibration import DriftMonitor, DriftReading
from demur.calibration.drift import Signal

#: Decisions compared at once; fewer where the reference is small, since it should be ten times as large.
WINDOW, _SMALLEST_WINDOW, _REFERENCE_WINDOWS = 500, 50, 10


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Columns of the rows that a bundle was made from: `score` [n], `label_mass` [n], how often each option [K]."""

    score: NDArray[np.float64]
    label_mass: NDArray[np.float64]
    options: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Seen:
    """One decision of the traffic. `p_correct` is None without a calibrator."""

    score: float
    index: int
    label_mass: float
    p_correct: float | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """The last window. `drift` is None where it is not full or there is no usable reference."""

    expected_accuracy: float | None
    drift: DriftReading | None
    limits: Mapping[Signal, float]


class TrafficWindow:
    """The last decisions of a task under one bundle."""

    def __init__(self, monitor: DriftMonitor | None) -> None:
        self._monitor = monitor
        self._seen: deque[Seen] = deque(maxlen=WINDOW if self._monitor is None else self._monitor.window)

    @property
    def size(self) -> int:
        """Decisions in a full window."""
        return self._seen.maxlen or 0

    def add(self, seen: Seen) -> None:
        """Take the next decision."""
        self._seen.append(seen)

    def read(self) -> Traffic:
        """What the window shows now."""
        rows = list(self._seen)  # one step under the interpreter's lock, while decisions come in
        known = [row.p_correct for row in rows if row.p_correct is not None]
        accuracy = float(np.mean(known)) if known and len(known) == len(rows) else None
        if self._monitor is None or len(rows) < self._monitor.window:
            return Traffic(accuracy, None, {})
        reading = self._monitor.read(
            np.clip([row.score for row in rows], 0.0, 1.0),
            np.array([row.index for row in rows], dtype=np.int64),
            np.clip([row.label_mass for row in rows], 0.0, 1.0),
        )
        return Traffic(accuracy, reading, self._monitor.limits)


def drift_monitor(reference: Reference) -> DriftMonitor | None:
    """Limits for a reference, simulated in most of a second; None for one too small to be compared with."""
    n = len(reference.score)
    window = min(WINDOW, n // _REFERENCE_WINDOWS)
    if window < _SMALLEST_WINDOW or len(reference.label_mass) != n or int(reference.options.sum()) != n:
        return None
    decided = np.repeat(np.arange(len(reference.options)), reference.options)
    return DriftMonitor.fit(
        np.clip(reference.score, 0.0, 1.0),
        decided,
        np.clip(reference.label_mass, 0.0, 1.0),
        options=len(reference.options),
        window=window,
    )
