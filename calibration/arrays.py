"""Checks that every array passes on its way in, so that the numeric code can trust its arguments."""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from demur.calibration.errors import InvalidData

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

EPSILON = float(np.finfo(np.float64).eps)
LOG_EPSILON = float(np.log(EPSILON))
# Below this share of the row's best option (in nats) an option's probability is zero for every purpose.
LOG_ZERO = -1e4
# Wire probabilities are rounded to six decimals; over 255 options that adds up to about 1e-4.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Decisions:
    """Checked probabilities with what every metric needs from them.

    Attributes:
        probabilities: [n, K], rows sum to one.
        labels: [n], gold option indices.
        confidence: [n], probability of the decision (the most probable option, the first one on a tie).
        correct: [n], whether the decision is the label.
    """

    probabilities: FloatArray
    labels: IntArray
    confidence: FloatArray
    correct: BoolArray


def check_decisions(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> Decisions:
    """Check a metric's arguments together; raises `InvalidData`."""
    p = check_probabilities(probabilities)
    y = check_labels(labels, *p.shape)
    decided = p.argmax(axis=1)
    return Decisions(p, y, p[np.arange(len(p)), decided], decided == y)


def check_probabilities(probabilities: npt.ArrayLike) -> FloatArray:
    """Return [n, K] float64 probabilities (K >= 2) whose rows sum to one within 1e-3; raises `InvalidData`."""
    p = _matrix(probabilities, "probabilities")
    # A NaN or an infinity shows up in its row's sum, so one product covers all but negative entries.
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(p @ np.ones(p.shape[1]) - 1.0) <= SUM_TOLERANCE)
    if off.any() or p.min() < 0.0:
        _explain_probabilities(p)
    return p


def check_logprobs(logprobs: npt.ArrayLike) -> tuple[FloatArray, int]:
    """Return [n, K] log-probabilities normalised over the options, and how many exact zeros were clipped.

    Rows may carry any additive constant (label log-probabilities over a whole vocabulary, or logits): only differences
    within a row matter. `-inf`, or 10,000 nats below the best option, is an exact zero; it becomes the machine epsilon,
    or the row's smallest other value where that is lower, so that the order of the options stays. NaN, `+inf` and
    rows of zeros only raise `InvalidData`.
    """
    z = _matrix(logprobs, "logprobs")
    decided = z.argmax(axis=1)
    top = z[np.arange(len(z)), decided]
    if not np.isfinite(top).all():
        row = int(np.flatnonzero(~np.isfinite(top))[0])
        if top[row] == -np.inf:
            raise InvalidData(f"logprobs row {row}: every option has probability zero")
        column = int(np.flatnonzero(~(z[row] < np.inf))[0])
        raise InvalidData(f"logprobs row {row}, option {column}: {z[row, column]} is not a log-probability")
    with np.errstate(over="ignore"):
        z = normalise(z, decided)
    zero = z < LOG_ZERO
    zeros = int(np.count_nonzero(zero))
    if zeros:
        smallest = np.where(zero, 0.0, z).min(axis=1, keepdims=True)
        z = np.where(zero, np.minimum(smallest, LOG_EPSILON), z)
    return z, zeros


def normalise(logprobs: FloatArray, decided: IntArray) -> FloatArray:
    """Shift rows of [n, K] log-probabilities, first largest at `decided` [n], so that their exponentials sum to one."""
    z: FloatArray = logprobs - logprobs[np.arange(len(decided)), decided][:, None]
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    keep_decision(z, decided)
    return z


def keep_decision(values: FloatArray, decided: IntArray) -> None:
    """Lift, in place and by one float, any decision that rounding left tied with an option listed before it."""
    lost = np.flatnonzero(values.argmax(axis=1) != decided)
    if len(lost):
        values[lost, decided[lost]] = np.nextafter(values[lost].max(axis=1), np.inf)


def check_labels(labels: npt.ArrayLike, n: int, n_options: int) -> IntArray:
    """Return [n] integer labels in [0, K); raises `InvalidData`."""
    y = np.asarray(labels)
    if y.ndim != 1:
        raise InvalidData(f"labels must have one dimension, not shape {y.shape}")
    if len(y) != n:
        raise InvalidData(f"{len(y)} labels for {n} rows")
    if y.dtype.kind not in "iub":
        raise InvalidData(f"labels must be integers (option indices), not {y.dtype}; the first is {y[0]!r}")
    outside = (y < 0) | (y >= n_options)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise InvalidData(f"labels row {row}: {y[row]} is not an option index in 0..{n_options - 1}")
    return y.astype(np.int64)


def check_confidence(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return [n] confidences in [0, 1] and [n] booleans; raises `InvalidData`."""
    c = check_unit(confidence, "confidence")
    r = check_correct(correct, len(c))
    return c, r


def check_unit(values: npt.ArrayLike, name: str) -> FloatArray:
    """Return [n] float64 values in [0, 1], n >= 1; raises `InvalidData` that calls them `name`."""
    v = _vector(values, name)
    outside = ~((v >= 0.0) & (v <= 1.0))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise InvalidData(f"{name} row {row}: {v[row]} is not in [0, 1]")
    return v


def check_scores(scores: npt.ArrayLike) -> FloatArray:
    """Return [n] float64 scores on any scale; NaN raises `InvalidData`."""
    v = _vector(scores, "score")
    if np.isnan(v).any():
        raise InvalidData(f"score row {int(np.flatnonzero(np.isnan(v))[0])}: nan is not a score")
    return v


def check_correct(correct: npt.ArrayLike, n: int) -> BoolArray:
    """Return [n] booleans from booleans or zeros and ones; raises `InvalidData`."""
    r = np.asarray(correct)
    if r.ndim != 1:
        raise InvalidData(f"correct must have one dimension, not shape {r.shape}")
    if len(r) != n:
        raise InvalidData(f"{len(r)} values of correct for {n} rows")
    if r.dtype != np.bool_:
        odd = ~((r == 0) | (r == 1))
        if odd.any():
            row = int(np.flatnonzero(odd)[0])
            raise InvalidData(f"correct row {row}: {r[row]!r} is neither true nor false")
    return r.astype(np.bool_)


def _matrix(values: npt.ArrayLike, name: str) -> FloatArray:
    try:
        m = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidData(f"{name} is not an array of numbers: {error}") from None
    if np.ndim(values) != 2 or m.shape[1] < 2:
        raise InvalidData(f"{name} must have shape [n, K] with K >= 2, not {list(np.shape(values))}")
    if not len(m):
        raise InvalidData(f"{name} has no rows")
    return m


def _vector(values: npt.ArrayLike, name: str) -> FloatArray:
    try:
        v = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidData(f"{name} is not an array of numbers: {error}") from None
    if v.ndim != 1:
        raise InvalidData(f"{name} must have one dimension, not shape {v.shape}")
    if not len(v):
        raise InvalidData(f"{name} has no rows")
    return v


def _explain_probabilities(p: FloatArray) -> NoReturn:
    bad = ~((p >= 0.0) & (p < np.inf))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InvalidData(f"probabilities row {row}, option {column}: {p[row, column]} is not a probability")
    total = p.sum(axis=1)
    row = int(np.flatnonzero(~(np.abs(total - 1.0) <= SUM_TOLERANCE))[0])
    raise InvalidData(f"probabilities row {row}: they sum to {total[row]:.6g}, not 1")
