"""Figures of calibration: the reliability diagram and the confidence histogram.

Needs matplotlib (the `plots` extra); `demur.calibration` itself does not import this module.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

from demur.calibration.arrays import FloatArray, check_confidence
from demur.calibration.calibration_error import ReliabilityBins, Strategy, bin_confidence
from demur.calibration.intervals import binomial_interval
from demur.calibration.noise_band import simulate_band
from demur.calibration.plot_style import (
    BAND,
    BLUE,
    INK,
    ORANGE,
    QUIET,
    Plot,
    key,
    level_percent,
    new_figure,
    percent,
    percent_axis,
)
from demur.calibration.plots_selective import plot_risk_coverage, plot_threshold_chooser

__all__ = [
    "Plot",
    "plot_confidence_histogram",
    "plot_reliability",
    "plot_risk_coverage",
    "plot_threshold_chooser",
]


def plot_reliability(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Strategy = "quantile",
    level: float = 0.95,
    title: str = "Reliability",
    confidence_name: str = "confidence",
) -> Plot:
    """Reliability diagram: accuracy against mean confidence by bin, with what chance alone would show.

    Bars are exact binomial intervals of each bin's accuracy; the grey band is where a perfectly calibrated model's bin
    of that size would fall (Broecker and Smith 2007). Below, how many decisions each bin holds.

    Args:
        confidence: [n], in [0, 1]: the top probability or `p_correct`.
        correct: [n], booleans or zeros and ones.
        n_bins: number of bins.
        strategy: "quantile" for equal counts, "uniform" for equal widths.
        level: of intervals and band, in (0, 1).
        title: heading.
        confidence_name: what the x axis measures.

    Raises:
        InvalidData: a confidence outside [0, 1], lengths that differ, no rows.
        InvalidParameter: an argument out of its range.
    """
    c, r = check_confidence(confidence, correct)
    bins = bin_confidence(c, r, n_bins, strategy)
    noise = simulate_band(c, n_bins, strategy, level, 400, 0)
    ece = bins.expected_error
    verdict = "within" if ece <= noise.upper else "above"
    chance_range = f"{percent(noise.lower)} to {percent(noise.upper)}"
    subtitle = f"ECE {percent(ece)}; a perfectly calibrated model shows {chance_range} (n = {len(c):,})"
    figure, (ax, below) = new_figure(title, subtitle, height=5.6, rows=(4.2, 1.0), key_lines=2)
    low = _axis_start(c)
    ax.plot([low, 1], [low, 1], color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)), label="perfectly calibrated")
    tail = 0.5 * (1 - level)
    chance = [stats.binom.ppf(q, bins.counts, bins.confidence) / bins.counts for q in (tail, 1 - tail)]
    _band(ax, bins, chance, f"chance alone ({level_percent(level)})")
    lower, upper = binomial_interval(np.round(bins.accuracy * bins.counts), bins.counts, level=level)
    ax.errorbar(
        bins.confidence,
        bins.accuracy,
        yerr=np.maximum(0.0, (bins.accuracy - lower, upper - bins.accuracy)),
        fmt="o",
        color=BLUE,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        elinewidth=1.4,
        label=f"this model ({level_percent(level)} intervals)",
        zorder=3,
    )
    ax.set_xlim(low, 1 + 0.012 * (1 - low))
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("accuracy in the bin")
    key(ax)
    below.hist(c, bins=np.linspace(low, 1, 41).tolist(), color=BLUE, alpha=0.85, linewidth=0)
    below.set_ylabel("decisions")
    below.set_xlabel(confidence_name)
    below.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    for axis in (ax.xaxis, ax.yaxis, below.xaxis):
        percent_axis(axis)
    alt = (
        f"{title}: reliability diagram of {len(c)} decisions in {len(bins.counts)} bins. Expected calibration error "
        f"{percent(ece)}, {verdict} the range {chance_range} of a perfectly calibrated model. "
        f"Mean {confidence_name} {percent(float(c.mean()))}, accuracy {percent(float(r.mean()))}."
    )
    return Plot(figure, alt)


def plot_confidence_histogram(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    n_bins: int = 20,
    title: str = "Confidence of right and wrong decisions",
    confidence_name: str = "confidence",
) -> Plot:
    """Histogram of confidence, right decisions and wrong ones stacked, with mean confidence and accuracy marked.

    Args and errors as for `plot_reliability`.
    """
    c, r = check_confidence(confidence, correct)
    bin_confidence(c, r, n_bins, "uniform")  # refuses a bad n_bins
    mean, accuracy = float(c.mean()), float(r.mean())
    gap = 100 * (mean - accuracy)
    tone = f"{abs(gap):.1f} points {'over' if gap > 0 else 'under'}confident"
    subtitle = f"mean {confidence_name} {percent(mean)}, accuracy {percent(accuracy)}: {tone} (n = {len(c):,})"
    figure, (ax,) = new_figure(title, subtitle, height=5.6, key_lines=2)
    start = _axis_start(c)
    edges = np.linspace(start, 1, n_bins + 1)
    right, wrong = np.histogram(c[r], edges)[0], np.histogram(c[~r], edges)[0]
    width = edges[1] - edges[0]
    ax.bar(edges[:-1], right, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.8, label="right")
    ax.bar(
        edges[:-1],
        wrong,
        width,
        bottom=right,
        align="edge",
        color=ORANGE,
        hatch="////",
        edgecolor="white",
        linewidth=0.8,
        label="wrong",
    )
    ax.axvline(mean, color=INK, linewidth=1.4, label=f"mean {confidence_name}")
    ax.axvline(accuracy, color=INK, linewidth=1.4, linestyle=(0, (2, 2)), label="accuracy")
    ax.set_xlim(start, 1)
    ax.set_xlabel(confidence_name)
    ax.set_ylabel("decisions")
    ax.yaxis.get_major_locator().set_params(integer=True)
    percent_axis(ax.xaxis)
    key(ax)
    alt = (
        f"{title}: histogram of {len(c)} decisions, {int(r.sum())} right and {int((~r).sum())} wrong. Mean "
        f"{confidence_name} {percent(mean)}, accuracy {percent(accuracy)}."
    )
    return Plot(figure, alt)


def _axis_start(confidence: FloatArray) -> float:
    """A round number below the data: a model that is never unsure needs no empty half."""
    return min(float(np.floor(confidence.min() * 10) / 10), 0.9)


def _band(ax: object, bins: ReliabilityBins, chance: list[FloatArray], label: str) -> None:
    """Draw the band through the bin means, carried on to the outer edges of the outer bins."""
    x = np.concatenate((bins.lower[:1], bins.confidence, bins.upper[-1:]))
    lower, upper = (np.concatenate((side[:1], side, side[-1:])) for side in chance)
    ax.fill_between(x, lower, upper, color=BAND, linewidth=0, label=label, zorder=1)  # type: ignore[attr-defined]
