"""`report.html`: an evaluation as one page that opens from disk, with its figures inside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from demur.calibration.plots import (
    Plot,
    plot_confidence_histogram,
    plot_reliability,
    plot_risk_coverage,
    plot_threshold_chooser,
)
from demur.server.evaluation import raw_probabilities
from demur.server.readings import Readings

_STATIC = Path(__file__).parent / "static"
_MEASURES = (
    ("accuracy", "accuracy"),
    ("mean confidence", "mean_confidence"),
    ("NLL (nats)", "nll"),
    ("Brier score", "brier"),
    ("ECE, 15 bins of equal count", "ece_quantile_15"),
    ("ECE, 15 bins of equal width", "ece_uniform_15"),
    ("ECE, debiased", "debiased_calibration_error"),
    ("largest gap of a bin (MCE)", "maximum_calibration_error"),
    ("classwise ECE", "classwise_calibration_error"),
    ("smooth ECE", "smooth_calibration_error"),
    ("AUROC of confidence", "auroc"),
    ("AURC", "aurc"),
    ("excess AURC", "excess_aurc"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What decisions are trusted by: the `score` [n] called `name`, and a certificate's limit and loosest threshold.

    Decisions that no score makes trusted, for want of label mass, have the score 0. `threshold` is None where nothing
    is certified, or each slice has one of its own.
    """

    name: str
    score: NDArray[np.float64]
    alpha: float | None
    threshold: float | None


def report_html(
    title: str,
    report: Mapping[str, Any],
    readings: Readings,
    after: NDArray[np.float64],
    p_correct: NDArray[np.float64] | None,
    *,
    model: str | None = None,
    summary: str | None = None,
    ranking: Ranking | None = None,
) -> str:
    """The page of an `evaluation`, whose arguments `readings`, `after` and `p_correct` are.

    `ranking` is what a bundle ranks decisions by; without one they are ranked by `p_correct`.
    """
    raw = raw_probabilities(readings)
    confidence, correct = _decisions(readings, after, p_correct)
    raw_confidence, raw_correct = raw.max(axis=1), raw.argmax(axis=1) == readings.labels
    reliability = [
        plot_reliability(raw_confidence, raw_correct, n_bins=10, title="Before calibration"),
        _after(confidence, correct),
        plot_confidence_histogram(raw_confidence, raw_correct, title="Right and wrong, before"),
        plot_confidence_histogram(confidence, correct, title="Right and wrong, after", confidence_name="p_correct"),
    ]
    by = ranking or Ranking("p_correct", confidence, None, None)
    selective = [
        plot_risk_coverage(by.score, correct, alpha=by.alpha, certified_threshold=by.threshold),
        plot_threshold_chooser(by.score, correct, alpha=by.alpha, threshold=by.threshold, score_name=by.name),
    ]
    environment = Environment(
        loader=FileSystemLoader(_STATIC), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": _percent, "interval": _interval}
    return environment.get_template("report.html").render(
        title=title,
        report=report,
        model=model,
        summary=summary,
        plots={
            "reliability": [_inline(plot) for plot in reliability],
            "selective": [_inline(plot) for plot in selective],
        },
        measures=list(_measures(report)),
    )


def reliability_svg(readings: Readings, after: NDArray[np.float64], p_correct: NDArray[np.float64] | None) -> str:
    """The reliability diagram of held-out `p_correct`, as one SVG document."""
    return _after(*_decisions(readings, after, p_correct)).svg()


def _measures(report: Mapping[str, Any]) -> list[dict[str, str]]:
    before, after = report["before"], report["after"]
    rows = [{"name": name, "before": _figure(before[key]), "after": _figure(after[key])} for name, key in _MEASURES]
    chance = {"before": _range(before["ece_noise"]), "after": _range(after["ece_noise"])}
    return [*rows, {"name": "ECE (equal width) by chance alone", **chance}]


def _range(band: Mapping[str, float]) -> str:
    return f"{_figure(band['lower'])} to {_figure(band['upper'])}"


def _decisions(
    readings: Readings, after: NDArray[np.float64], p_correct: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    decided = after.argmax(axis=1)
    confidence = after[np.arange(len(after)), decided] if p_correct is None else p_correct
    return confidence, decided == readings.labels


def _after(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> Plot:
    title = "After calibration (held out)"
    return plot_reliability(confidence, correct, n_bins=10, title=title, confidence_name="p_correct")


def _inline(plot: Plot) -> Markup:
    """The drawing without the head of an XML document; matplotlib has escaped its texts."""
    svg = plot.svg()
    return Markup(svg[svg.index("<svg") :])  # noqa: S704


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _interval(share: Mapping[str, Any]) -> str:
    return f"{100 * share['lower']:.1f}% to {100 * share['upper']:.1f}%"
