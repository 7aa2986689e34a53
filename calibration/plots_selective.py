"""Figures of selective decisions: risk against coverage, and what each threshold would trust."""

from typing import Any

import numpy as np
import numpy.typing as npt

from demur.calibration.arrays import FloatArray
from demur.calibration.errors import InvalidParameter
from demur.calibration.intervals import binomial_interval
from demur.calibration.plot_style import (
    BLUE,
    GREEN,
    RED,
    Plot,
    key,
    level_percent,
    new_figure,
    percent,
    percent_axis,
)
from demur.calibration.selective import RiskCoverage, risk_coverage

# More points than a screen has pixels only make files large.
_MAX_POINTS = 300


def plot_risk_coverage(
    score: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    alpha: float | None = None,
    certified_threshold: float | None = None,
    level: float = 0.95,
    title: str = "Error among the trusted, by how many are trusted",
) -> Plot:
    """Risk-coverage curve with pointwise intervals, the limit alpha and the certified point.

    Args:
        score: [n], what the threshold applies to; higher is surer.
        correct: [n], booleans or zeros and ones.
        alpha: the error that a certificate promises to stay under, drawn as a line.
        certified_threshold: trust where score >= this; drawn as a point. None draws none.
        level: of the intervals, in (0, 1); they hold at each threshold alone, not over all of them.
        title: heading.

    Raises:
        InvalidData: NaN, lengths that differ, no rows.
        InvalidParameter: `level` or `alpha` outside (0, 1).
    """
    curve = risk_coverage(score, correct)
    _check_alpha(alpha)
    kept = _thin(curve)
    coverage, risk = curve.coverage[kept], curve.risk[kept]
    lower, upper = binomial_interval(curve.wrong[kept], curve.trusted[kept], level=level)
    point = None if certified_threshold is None else _at(curve, certified_threshold)
    subtitle = f"AURC {curve.aurc:.3f}, {curve.excess_aurc:.3f} above an ideal ranking (n = {curve.n:,})"
    if point is not None:
        subtitle = f"certified: {percent(point[0])} trusted, {percent(point[1])} of them wrong here (n = {curve.n:,})"
    figure, (ax,) = new_figure(title, subtitle, height=5.6, key_lines=2)
    label = f"{level_percent(level)} interval at each point"
    ax.fill_between(coverage, lower, upper, color=BLUE, alpha=0.16, linewidth=0, label=label)
    ax.plot(coverage, risk, **_line(len(kept)), label="error among the trusted")
    if alpha is not None:
        _alpha_line(ax, alpha)
    if point is not None:
        ax.vlines(point[0], 0, point[1], color=GREEN, linewidth=1.2)
        ax.plot(
            *point,
            marker="D",
            markersize=8,
            color=GREEN,
            markeredgecolor="white",
            linestyle="none",
            label=f"certified: score ≥ {certified_threshold:.4g}",
            zorder=4,
            clip_on=False,
        )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, _risk_limit(risk, alpha))
    ax.set_xlabel("coverage: share of decisions trusted")
    ax.set_ylabel("risk: share of errors among them")
    percent_axis(ax.xaxis)
    percent_axis(ax.yaxis)
    key(ax)
    alt = (
        f"{title}: risk-coverage curve of {curve.n} decisions, from {percent(float(risk[0]))} error at "
        f"{percent(float(coverage[0]))} coverage to {percent(float(risk[-1]))} at full coverage."
    )
    if point is not None:
        alt += f" Certified point: {percent(point[0])} trusted with {percent(point[1])} errors."
    return Plot(figure, alt)


def plot_threshold_chooser(
    score: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    alpha: float | None = None,
    threshold: float | None = None,
    level: float = 0.95,
    title: str = "What each threshold would trust",
    score_name: str = "score",
) -> Plot:
    """Two panels over the threshold: the error among the trusted with its interval, and the share trusted.

    Args:
        score, correct, alpha, level, title: as for `plot_risk_coverage`.
        threshold: the one in force, marked in both panels. None marks none.
        score_name: what the threshold applies to.

    Raises:
        InvalidData: NaN, lengths that differ, no rows.
        InvalidParameter: `level` or `alpha` outside (0, 1).
    """
    curve = risk_coverage(score, correct)
    _check_alpha(alpha)
    kept = _thin(curve)
    at = curve.threshold[kept]
    lower, upper = binomial_interval(curve.wrong[kept], curve.trusted[kept], level=level)
    subtitle = f"each interval holds at its own threshold; choosing one needs a certificate (n = {curve.n:,})"
    point = None if threshold is None else _at(curve, threshold)
    if threshold is not None and point is not None:
        shares = f"{percent(point[0])} trusted, {percent(point[1])} of them wrong"
        subtitle = f"at {threshold:.4g}: {shares} (n = {curve.n:,})"
    figure, (ax, below) = new_figure(title, subtitle, height=5.6, rows=(1.3, 1.0), key_lines=2)
    # Trusted sets change only at the scores themselves: a threshold between two scores trusts the upper set.
    ax.fill_between(
        at, lower, upper, step="post", color=BLUE, alpha=0.16, linewidth=0, label=f"{level_percent(level)} interval"
    )
    steps = {"drawstyle": "steps-post", **_line(len(kept))}
    ax.plot(at, curve.risk[kept], **steps, label="error among the trusted")
    if alpha is not None:
        _alpha_line(ax, alpha)
    below.fill_between(at, 0, curve.coverage[kept], step="post", color=BLUE, alpha=0.16, linewidth=0)
    below.plot(at, curve.coverage[kept], **steps)
    if threshold is not None:
        for panel in (ax, below):
            panel.axvline(threshold, color=GREEN, linewidth=1.6, label=f"threshold {threshold:.4g}", zorder=3)
        for panel, height in ((ax, point and point[1]), (below, point and point[0])):
            if height is not None:
                panel.plot(threshold, height, "D", color=GREEN, markeredgecolor="white", markersize=7, clip_on=False)
    ax.set_ylim(0, _risk_limit(curve.risk[kept], alpha))
    ax.set_ylabel("error among trusted")
    below.set_ylim(0, 1.02)
    below.set_ylabel("share trusted")
    below.set_xlabel(f"threshold: trust where {score_name} is at least this")
    percent_axis(ax.yaxis)
    percent_axis(below.yaxis)
    key(ax)
    alt = f"{title}: error among the trusted and share trusted for each threshold on {score_name}, {curve.n} decisions."
    if threshold is not None and point is not None:
        alt += f" At {threshold:.4g}, {percent(point[0])} are trusted and {percent(point[1])} of those are wrong."
    return Plot(figure, alt)


def _line(n_points: int) -> dict[str, Any]:
    """A few thresholds are drawn as points too: one alone would be invisible."""
    return {"color": BLUE, "linewidth": 1.8, "marker": "o" if n_points < 20 else None, "markersize": 4}


def _alpha_line(ax: Any, alpha: float) -> None:
    ax.axhline(alpha, color=RED, linewidth=1.4, linestyle=(0, (5, 3)), label=f"limit {level_percent(alpha)}")


def _at(curve: RiskCoverage, threshold: float) -> tuple[float, float] | None:
    """Coverage and risk of trusting score >= threshold, None where nothing is trusted."""
    trusted = int(np.count_nonzero(curve.threshold >= threshold))
    return (float(curve.coverage[trusted - 1]), float(curve.risk[trusted - 1])) if trusted else None


def _thin(curve: RiskCoverage) -> npt.NDArray[np.int64]:
    """Points evenly spread over coverage, the first and the last among them."""
    wanted = np.linspace(0, curve.n, min(_MAX_POINTS, len(curve.threshold)))
    picked = np.searchsorted(curve.trusted, wanted).clip(0, len(curve.threshold) - 1)
    return np.unique(np.concatenate(([0], picked, [len(curve.threshold) - 1])))


def _risk_limit(risk: FloatArray, alpha: float | None) -> float:
    """Top of the risk axis: room for the curve's body, not for the spikes of its first few decisions."""
    body = float(np.quantile(risk, 0.98))
    return min(1.0, 1.25 * max(body, float(risk[-1]), alpha or 0.0, 0.02))


def _check_alpha(alpha: float | None) -> None:
    if alpha is not None and not 0.0 < alpha < 1.0:
        raise InvalidParameter(f"alpha must be in (0, 1), not {alpha}")
