"""Drift without labels: how far a window of decisions lies from the reference, with alarms that are rarely false."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from demur.calibration.errors import DriftError
from demur.calibration.grid import threshold_below

Signal = Literal["confidence_psi", "confidence_ks", "option_js", "label_mass_ks"]
SIGNALS: tuple[Signal, ...] = ("confidence_psi", "confidence_ks", "option_js", "label_mass_ks")
# All signals of a task together alarm on at most this share of unshifted windows.
ALARM_SHARE = 0.01
# A reference is itself a sample, and an unlucky one makes every window look a little shifted: the share is kept for
# this part of all references, not just on average over them.
_REFERENCES_KEPT = 0.95
_BINS = 10
_FINE_BINS = 50
_SIMULATED_REFERENCES = 64
_SIMULATED_WINDOWS = 1000


def population_stability_index(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    """`sum (p - q) ln(p/q)` over the last axis of two arrays of shares, in nats; infinite where one of a pair is 0."""
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(a == b, 0.0, (a - b) * (np.log(a) - np.log(b)))
    return np.asarray(terms.sum(axis=-1))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    """Jensen-Shannon divergence over the last axis of two arrays of shares, in nats, 0 to ln 2 (Lin 1991)."""
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    middle = (a + b) / 2

    def kl(x: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = np.divide(x, middle, out=np.ones_like(middle), where=(x > 0) & (middle > 0))
        return np.asarray((x * np.log(ratio)).sum(axis=-1))

    return (kl(a) + kl(b)) / 2


def kolmogorov_smirnov(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    """Largest difference of the two cumulated shares over the last axis, of ordered bins; 0 to 1."""
    difference = np.cumsum(np.asarray(p, dtype=np.float64) - np.asarray(q, dtype=np.float64), axis=-1)
    return np.asarray(np.abs(difference).max(axis=-1))


@dataclass(frozen=True)
class DriftReading:
    """One window: the value of each signal, the signals past their limit, and the estimated accuracy.

    `expected_accuracy` is the mean `p_correct`: the accuracy if the calibration still holds. It cannot see a change of
    what is right for a given input (concept drift).
    """

    values: dict[Signal, float]
    alarms: tuple[Signal, ...]
    expected_accuracy: float


@dataclass(frozen=True)
class DriftMonitor:
    """The reference of a task, as shares of bins, and the limit of each signal for windows of `window` decisions."""

    window: int
    reference: int
    confidence_edges: NDArray[np.float64]
    confidence: NDArray[np.float64]
    options: NDArray[np.float64]
    mass_edges: NDArray[np.float64]
    mass: NDArray[np.float64]
    limits: dict[Signal, float]

    @classmethod
    def fit(
        cls,
        p_correct: ArrayLike,
        decision: ArrayLike,
        label_mass: ArrayLike,
        *,
        options: int,
        window: int = 500,
        seed: int = 0,
    ) -> DriftMonitor:
        """Take a reference of n decisions (10 windows or more are advised) and set the limits.

        Parameters
        ----------
        p_correct, label_mass : shape (n,), in [0, 1]. decision : shape (n,), integers below `options`.
        window : decisions in each window that will be compared; at least 50.

        The limits are quantiles of each signal between references and windows simulated from the reference's shares, so
        they allow for the sampling error of both. Raises DriftError for columns that do not fit or too few rows.
        """
        if window < 50:
            raise DriftError(f"window is {window}, but must be at least 50")
        confidence, chosen, mass = _columns(p_correct, decision, label_mass, options)
        n = confidence.size
        if n < window:
            raise DriftError(f"the reference has {n} rows, fewer than a window of {window}")
        confidence_edges, mass_edges = _edges(confidence), _edges(mass)
        shares = (
            _histogram(confidence, confidence_edges),
            np.bincount(chosen, minlength=options) / n,
            _histogram(mass, mass_edges),
        )
        rng = np.random.default_rng(seed)
        drawn = _SIMULATED_REFERENCES, _SIMULATED_WINDOWS
        # One row more in each bin: what n rows never showed may still be as common as 1/n.
        likely = [(share * n + 1.0) / (n + share.size) for share in shares]
        references = [rng.multinomial(n, share, size=(drawn[0], 1)) / n for share in likely]
        windows = [rng.multinomial(window, share, size=drawn) / window for share in likely]
        level = 1.0 - ALARM_SHARE / len(SIGNALS)
        limits: dict[Signal, float] = {}
        for name, values in _signals(references, windows, n, window).items():
            of_reference = np.quantile(values, level, axis=1, method="higher")
            limits[name] = float(np.quantile(of_reference, _REFERENCES_KEPT, method="higher"))
        return cls(window, n, confidence_edges, shares[0], shares[1], mass_edges, shares[2], limits)

    def to_json(self) -> str:
        """The reference and the limits."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> DriftMonitor:
        """Read what `to_json` wrote. DriftError if it is not that."""
        try:
            record = json.loads(text)
            columns = {k: np.array(v, dtype=np.float64) for k, v in record.items() if isinstance(v, list)}
            monitor = cls(**{**record, **columns})
            if set(monitor.limits) != set(SIGNALS):
                raise DriftError("not a drift reference: its signals are not the ones expected")
        except (AttributeError, TypeError, json.JSONDecodeError) as error:
            raise DriftError(f"not a drift reference: {error}") from error
        return monitor

    def read(self, p_correct: ArrayLike, decision: ArrayLike, label_mass: ArrayLike) -> DriftReading:
        """Compare a window of exactly `window` decisions, columns as in `fit`. DriftError for another length."""
        confidence, chosen, mass = _columns(p_correct, decision, label_mass, self.options.size)
        if confidence.size != self.window:
            raise DriftError(f"the window has {confidence.size} rows, but the limits are for {self.window}")
        now = [
            _histogram(confidence, self.confidence_edges),
            np.bincount(chosen, minlength=self.options.size) / self.window,
            _histogram(mass, self.mass_edges),
        ]
        signals = _signals([self.confidence, self.options, self.mass], now, self.reference, self.window)
        values: dict[Signal, float] = {name: float(value) for name, value in signals.items()}
        alarms = tuple(name for name in SIGNALS if values[name] > self.limits[name])
        return DriftReading(values, alarms, float(confidence.mean()))


def _signals(
    reference: list[NDArray[np.float64]], now: list[NDArray[np.float64]], n: int, window: int
) -> dict[Signal, NDArray[np.float64]]:
    return {
        "confidence_psi": population_stability_index(
            _smooth(_coarse(reference[0]), n), _smooth(_coarse(now[0]), window)
        ),
        "confidence_ks": kolmogorov_smirnov(reference[0], now[0]),
        "option_js": jensen_shannon(reference[1], now[1]),
        "label_mass_ks": kolmogorov_smirnov(reference[2], now[2]),
    }


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of equally filled bins; a value that fills a bin alone has one to itself."""
    edges, counts = np.unique(np.quantile(values, np.linspace(0, 1, _FINE_BINS + 1)[1:-1]), return_counts=True)
    return np.unique(np.concatenate([edges, threshold_below(edges[counts > 1])]))


def _smooth(share: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Half a row added to each bin, so that an empty bin does not make the index infinite."""
    return np.asarray((share * n + 0.5) / (n + 0.5 * share.shape[-1]))


def _coarse(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Neighbouring fine bins added up to at most _BINS."""
    starts = np.unique(np.linspace(0, share.shape[-1], min(_BINS, share.shape[-1]), endpoint=False).astype(int))
    return np.asarray(np.add.reduceat(share, starts, axis=-1))


def _histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=edges.size + 1) / values.size


def _columns(
    p_correct: ArrayLike, decision: ArrayLike, label_mass: ArrayLike, options: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    confidence, mass = np.asarray(p_correct, dtype=np.float64), np.asarray(label_mass, dtype=np.float64)
    chosen = np.asarray(decision)
    if confidence.ndim != 1 or confidence.size == 0 or not confidence.shape == chosen.shape == mass.shape:
        raise DriftError(
            f"columns of shapes {confidence.shape}, {chosen.shape}, {mass.shape}: one value a row is needed"
        )
    # Engines round, so a label mass of 1 may come a little above it.
    for name, column in (("p_correct", confidence), ("label_mass", mass)):
        if not ((column >= 0.0) & (column <= 1.0 + 1e-6)).all():
            raise DriftError(f"{name} must lie in [0, 1]")
    if not np.issubdtype(chosen.dtype, np.integer) or (chosen < 0).any() or (chosen >= options).any():
        raise DriftError(f"decision must hold integers from 0 to {options - 1}")
    return confidence, chosen.astype(np.int64), mass
