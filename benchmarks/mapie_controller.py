"""MAPIE's `BinaryClassificationController` on (score, correct) columns, in all the ways it can be set up.

`from_counts` counts each threshold's rows with one sort and hands MAPIE's own `ltt_procedure` the risks and sizes;
`with_the_class` runs the class itself. `benchmarks.certificates` checks on its first draws that both agree exactly.
"""

from __future__ import annotations

import warnings

import numpy as np
from mapie.risk_control import BinaryClassificationController
from mapie.risk_control._base_controller import ltt_procedure
from mapie.risk_control.fwer_control import FWERFixedSequenceTesting
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from numpy.typing import NDArray

Columns = tuple[NDArray[np.float64], NDArray[np.bool_]]

GRID = np.linspace(0, 0.99, 100)  # MAPIE's default
REVERSED = GRID[::-1]
LEARN_SHARE = 0.3
_BETAS = np.logspace(-25, 0, 1000)  # MAPIE's default

METHODS = (
    "bonferroni",
    "bonferroni_holm",
    "fixed_sequence",
    "fixed_sequence, 2 starts",
    "fixed_sequence, 3 starts",
    "fixed_sequence, 5 starts",
    "fixed_sequence, 10 starts",
    "split_fixed_sequence 30/70",
)


def _procedure(method: str) -> object:
    if method.endswith("starts"):
        return FWERFixedSequenceTesting(n_starts=int(method.split()[-2]))
    return method.split()[0]


def _grid(method: str) -> NDArray[np.float64]:
    return REVERSED if method.startswith("fixed_sequence") else GRID


def with_the_class(score: NDArray[np.float64], correct: NDArray[np.bool_], alpha: float, delta: float) -> list[float]:
    """The threshold of each of METHODS from the class itself; NaN where it certifies none."""
    found = []
    for method in METHODS:
        controller = BinaryClassificationController(
            lambda x: np.column_stack([1 - x, x]),
            risk="precision",
            target_level=1 - alpha,
            confidence_level=1 - delta,
            list_predict_params=_grid(method),
            fwer_method=_procedure(method),
        )
        x, y = score, correct.astype(int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method.startswith("split"):
                cut = int(LEARN_SHARE * len(x))
                controller.learn_fixed_sequence_order(x[:cut], y[:cut], binary=True)
                x, y = x[cut:], y[cut:]
            controller.calibrate(x, y)
        best = controller.best_predict_param
        found.append(np.nan if best is None else float(best))
    return found


def from_counts(score: NDArray[np.float64], correct: NDArray[np.bool_], alpha: float, delta: float) -> list[float]:
    """The same through MAPIE's `ltt_procedure` on counted risks."""
    level, size = np.array([[1 - (1 - alpha)]]), 1 - (1 - delta)
    everywhere = _risk(score, correct, GRID)
    cut = int(LEARN_SHARE * len(score))
    found = []
    for method in METHODS:
        params, (risk, n) = _grid(method), everywhere
        hits = _hits(score, correct, GRID)
        if params is REVERSED:
            risk, n, hits = risk[::-1], n[::-1], hits[::-1]
        if method.startswith("split"):
            order = _learned_order(*_risk(score[:cut], correct[:cut], GRID), level)
            params = GRID[order]
            risk, n = (column[order] for column in _risk(score[cut:], correct[cut:], GRID))
            hits = _hits(score[cut:], correct[cut:], params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            valid = ltt_procedure(risk[None], level, size, n[None], True, fwer_method=_procedure(method))[0][0]
        if not valid:
            found.append(np.nan)
            continue
        # Among the valid thresholds MAPIE takes the highest recall, of equals the highest risk.
        recall = hits[valid]
        best = np.flatnonzero(recall == recall.max())
        found.append(float(params[valid][best[np.argmax(risk[valid][best])]]))
    return found


def _hits(score: NDArray[np.float64], correct: NDArray[np.bool_], params: NDArray[np.float64]) -> NDArray[np.int64]:
    right = np.sort(score[correct])
    return len(right) - np.searchsorted(right, params, side="left")


def _risk(
    score: NDArray[np.float64], correct: NDArray[np.bool_], params: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ordered = np.sort(score)
    n = len(ordered) - np.searchsorted(ordered, params, side="left")
    hits = _hits(score, correct, params)
    risk = np.where(n > 0, 1 - hits / np.maximum(n, 1), 1.0)
    return risk, np.where(n > 0, n, -1).astype(float)


def _learned_order(risk: NDArray[np.float64], n: NDArray[np.float64], level: NDArray[np.float64]) -> NDArray[np.int64]:
    p = compute_hoeffding_bentkus_p_value(risk, n, level[0], True)[:, 0]
    nearest: NDArray[np.int64] = np.abs(p[None, :] - _BETAS[:, None]).argmin(axis=1)
    return nearest[np.sort(np.unique(nearest, return_index=True)[1])]
