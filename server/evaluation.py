"""An evaluation as one JSON document: how right and how calibrated decisions are, and for which options not."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from demur.calibration import (
    binomial_interval,
    calibration_report,
    confidence_noise_band,
    negative_log_likelihood,
    reliability_bins,
    risk_coverage,
)
from demur.server.readings import Readings

SCHEMA = 1
#: Prices of a review, as shares of the price of an error, at which the cost is shown.
REVIEW_PRICES = (0.02, 0.05, 0.1, 0.2)
#: Coverages at which the risk is listed.
COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_WORST = 20


def evaluation(
    readings: Readings,
    names: Sequence[str] | None,
    after: NDArray[np.float64],
    p_correct: NDArray[np.float64] | None,
    *,
    method: str,
    held_out: str,
    left_out: Mapping[str, int],
    show_inputs: bool,
) -> dict[str, Any]:
    """The document.

    Args:
        readings: labelled rows.
        names: the options' names; None where they vary from row to row.
        after: [n, K], calibrated probabilities of rows that the calibrator did not see.
        p_correct: [n], in the same way; None takes the top probability.
        method: what calibrated.
        held_out: how it is sure that the rows were not seen, in words.
        left_out: how many rows were not taken, by why.
        show_inputs: whether inputs may be shown; if so the worst examples are.
    """
    before = raw_probabilities(readings)
    labels = readings.labels
    decided = after.argmax(axis=1)
    confidence = after[np.arange(len(after)), decided] if p_correct is None else p_correct
    correct = decided == labels
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "n": len(labels),
        "options_vary": names is None,
        # Intervals take rows as independent, which those of one group are not.
        "same_group": len(labels) - len(set(readings.units)),
        "left_out": dict(left_out),
        "method": method,
        "held_out": held_out,
        "before": calibration_report(before, labels).to_dict(),
        "after": calibration_report(after, labels).to_dict(),
        "accuracy": share(int((before.argmax(axis=1) == labels).sum()), len(labels)),
        "p_correct": _confidence(confidence, correct),
        "risk_coverage": coverage_table(confidence, correct),
        "cost": cost_table(confidence, correct),
        "label_mass": dict(zip(("p05", "median", "p95"), _quantiles(readings.label_mass), strict=True)),
    }
    if names is not None:
        document["by_decision"] = _by_class(names, decided, ~correct)
        document["by_true_class"] = _by_class(names, labels, ~correct)
    if slices := sorted({row.slice for row in readings.rows if row.slice is not None}):
        named = np.array([row.slice for row in readings.rows], dtype=object)
        document["by_slice"] = [_of_slice(value, named == value, before, after, confidence, labels) for value in slices]
    if show_inputs:
        document["worst"] = _worst(readings, names, decided, confidence, correct)
    return document


def raw_probabilities(readings: Readings) -> NDArray[np.float64]:
    """[n, K], as read, normalised over the options."""
    weights = np.exp(readings.scores - readings.scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def share(count: int, n: int) -> dict[str, Any]:
    """A share with its exact 95% interval."""
    lower, upper = binomial_interval(count, n)
    return {"count": count, "n": n, "share": count / n if n else None, "lower": float(lower), "upper": float(upper)}


def coverage_table(confidence: ArrayLike, correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The error among the most confident, for each of `COVERAGES` (the nearest that the ties allow, from above)."""
    curve = risk_coverage(confidence, correct)
    rows = []
    for wanted in COVERAGES:
        at = min(int(np.searchsorted(curve.trusted, wanted * curve.n - 1e-9)), len(curve.trusted) - 1)
        error = share(int(curve.wrong[at]), int(curve.trusted[at]))
        rows.append({"coverage": float(curve.coverage[at]), "threshold": float(curve.threshold[at]), "error": error})
    return rows


def cost_table(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Cost of 1,000 decisions, an error being worth 1, when what is unsure goes to a review that is always right.

    A decision is reviewed where its chance of being wrong is above the review's price.
    """
    rows = []
    for price in REVIEW_PRICES:
        act = 1.0 - confidence <= price
        mixed = np.where(act, ~correct, price)
        rows.append(
            {
                "review_price": price,
                "act_on_all": 1000 * float((~correct).mean()),
                "review_all": 1000 * price,
                "by_p_correct": 1000 * float(mixed.mean()),
                "reviewed": float((~act).mean()),
            }
        )
    return rows


def _confidence(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> dict[str, Any]:
    bins = reliability_bins(confidence, correct, n_bins=10, strategy="quantile")
    band = confidence_noise_band(confidence, n_bins=10, strategy="quantile", n_simulations=200)
    return {
        "mean": float(confidence.mean()),
        "ece_quantile_10": bins.expected_error,
        "chance_lower": band.lower,
        "chance_upper": band.upper,
        "auroc": _number(risk_coverage(confidence, correct).auroc),
    }


def _of_slice(
    value: str,
    here: NDArray[np.bool_],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    confidence: NDArray[np.float64],
    labels: NDArray[np.int64],
) -> dict[str, Any]:
    """How often the decisions of one slice are wrong, and how well confidence says so."""
    wrong = after[here].argmax(axis=1) != labels[here]
    return {
        "slice": value,
        **share(int(wrong.sum()), len(wrong)),
        "p_correct": _confidence(confidence[here], ~wrong),
        "nll_before": negative_log_likelihood(before[here], labels[here]),
        "nll_after": negative_log_likelihood(after[here], labels[here]),
    }


def _by_class(names: Sequence[str], classes: NDArray[np.int64], wrong: NDArray[np.bool_]) -> list[dict[str, Any]]:
    return [
        {"option": name, **share(int(wrong[classes == index].sum()), int((classes == index).sum()))}
        for index, name in enumerate(names)
    ]


def _worst(
    readings: Readings,
    names: Sequence[str] | None,
    decided: NDArray[np.int64],
    confidence: NDArray[np.float64],
    correct: NDArray[np.bool_],
) -> list[dict[str, Any]]:
    wrong = np.flatnonzero(~correct)
    rows = []
    for index in wrong[np.argsort(-confidence[wrong], kind="stable")][:_WORST]:
        row = readings.rows[index]
        options = names if row.own is None else row.own.names
        assert options is not None  # noqa: S101 - rows without a question of their own have the task's options
        label = None if row.label is None else options[row.label]
        rows.append(
            {
                "line": row.line,
                "id": row.id,
                "input": row.text,
                "decision": options[int(decided[index])],
                "label": label,
                "confidence": float(confidence[index]),
            }
        )
    return rows


def _quantiles(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.05, 0.5, 0.95))]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
