"""Cross-validation folds that depend on what the rows say, not on their order."""

from collections.abc import Hashable, Sequence
from hashlib import blake2b

import numpy as np

from demur.calibration.arrays import BoolArray, FloatArray, IntArray
from demur.calibration.errors import InvalidData, TooFewLabels


def content_groups(rows: FloatArray, labels: IntArray, groups: Sequence[Hashable] | None) -> IntArray:
    """Return [n] group numbers ordered by content hash; equal rows, or rows of one named group, share a number.

    Args:
        rows: [n, K], what identifies a row where no groups are named.
        labels: [n].
        groups: [n] names (such as hashes of the inputs), or None.

    Raises:
        InvalidData: lengths that differ.
    """
    if groups is None:
        keys = [
            blake2b(row.tobytes() + label.tobytes(), digest_size=16).digest()
            for row, label in zip(rows, labels, strict=True)
        ]
    elif len(groups) != len(rows):
        raise InvalidData(f"{len(groups)} groups for {len(rows)} rows")
    else:
        keys = [blake2b(str(group).encode(), digest_size=16).digest() for group in groups]
    _, numbers = np.unique(np.frombuffer(b"".join(keys), dtype="S16"), return_inverse=True)
    return numbers.astype(np.int64)


def assign_folds(groups: IntArray, correct: BoolArray, n_folds: int) -> IntArray:
    """Return [n] fold numbers: groups stay whole, and those with a wrong decision are dealt out evenly.

    Raises:
        TooFewLabels: fewer groups than two.
    """
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        raise TooFewLabels("all rows are one group; cross-validation needs at least two")
    has_wrong = np.bincount(groups, ~correct, minlength=n_groups) > 0
    order = np.argsort(has_wrong, kind="stable")
    fold = np.empty(n_groups, dtype=np.int64)
    fold[order] = np.arange(n_groups) % min(n_folds, n_groups)
    return fold[groups]


def mean_and_error(values: FloatArray, groups: IntArray) -> tuple[float, float]:
    """Mean over rows and its standard error, rows of one group counted as dependent."""
    mean = float(values.mean())
    sums = np.bincount(groups, values - mean)
    return mean, float(np.sqrt((sums * sums).sum()) / len(values))
