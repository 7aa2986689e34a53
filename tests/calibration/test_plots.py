"""Figures: what they draw is what was measured, written the same way every time, with a text alternative."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from scipy import stats

from demur import calibration as dc
from demur.calibration import plots


@pytest.fixture(scope="module")
def scored(readouts):
    """800 overconfident decisions: confidence and correctness."""
    logp, y = readouts(800, temperature=2.0)
    return np.exp(logp).max(axis=1), logp.argmax(axis=1) == y


DRAW = {
    "reliability": plots.plot_reliability,
    "histogram": plots.plot_confidence_histogram,
    "risk coverage": lambda c, r: plots.plot_risk_coverage(c, r, alpha=0.1, certified_threshold=0.95),
    "threshold": lambda c, r: plots.plot_threshold_chooser(c, r, alpha=0.1, threshold=0.95),
    "plain risk coverage": plots.plot_risk_coverage,
    "plain threshold": plots.plot_threshold_chooser,
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_figures_are_written_the_same_way_every_time(scored, draw):
    settings = dict(mpl.rcParams)
    one, other = draw(*scored), draw(*scored)
    assert one.svg() == other.svg()
    image = one.png()
    assert image == other.png()
    assert dict(mpl.rcParams) == settings
    assert image.startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_svg_is_well_formed_and_says_what_it_shows(scored, draw):
    plot = draw(*scored)
    root = ET.fromstring(plot.svg())  # noqa: S314 - our own output
    assert root.get("role") == "img"
    assert root.get("aria-label") == plot.alt
    assert "800 decisions" in plot.alt
    text = " ".join(root.itertext())
    assert "n = 800" in text
    assert "<dc:date>" not in plot.svg()
    assert len(plot.svg()) < 250_000


def test_titles_are_escaped(scored):
    plot = plots.plot_reliability(*scored, title='<b> & "quotes"')
    assert ET.fromstring(plot.svg()).get("aria-label").startswith('<b> & "quotes"')  # noqa: S314


def test_reliability_draws_the_bins_their_intervals_and_the_band(scored):
    c, r = scored
    plot = plots.plot_reliability(c, r, n_bins=8)
    bins = dc.reliability_bins(c, r, n_bins=8, strategy="quantile")
    ax, below = plot.figure.axes
    points = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_xdata(), bins.confidence)
    np.testing.assert_allclose(points.get_ydata(), bins.accuracy)
    (bars,) = ax.containers[0].lines[2]
    k = np.round(bins.accuracy * bins.counts)
    lower, upper = dc.binomial_interval(k, bins.counts)
    drawn = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(drawn, np.stack((lower, upper), axis=1), atol=1e-12)
    band = ax.collections[0].get_paths()[0].vertices
    for x, n in zip(bins.confidence, bins.counts, strict=True):
        ends = band[np.isclose(band[:, 0], x)][:, 1]
        expected = stats.binom.ppf([0.025, 0.975], n, x) / n
        assert (ends.min(), ends.max()) == pytest.approx(tuple(expected))
    assert sum(patch.get_height() for patch in below.patches) == 800
    text = " ".join(t.get_text() for t in plot.figure.texts)
    assert f"{100 * bins.expected_error:.0f}%" in text
    assert "above the range" in plot.alt


def test_a_calibrated_model_is_said_to_be_within_the_band(readouts):
    logp, y = readouts(800)
    alt = plots.plot_reliability(np.exp(logp).max(axis=1), logp.argmax(axis=1) == y).alt
    assert "within the range" in alt


def test_histogram_counts_every_decision_once(scored):
    c, r = scored
    ax = plots.plot_confidence_histogram(c, r).figure.axes[0]
    right, wrong = ax.containers
    assert sum(bar.get_height() for bar in right) == r.sum()
    assert sum(bar.get_height() for bar in wrong) == (~r).sum()
    marked = [line.get_xdata()[0] for line in ax.lines]
    assert marked == pytest.approx([c.mean(), r.mean()])


def test_the_certified_point_is_where_the_threshold_puts_it(scored):
    c, r = scored
    trusted = c >= 0.95
    plot = plots.plot_risk_coverage(c, r, alpha=0.1, certified_threshold=0.95)
    ax = plot.figure.axes[0]
    point = next(line for line in ax.lines if line.get_marker() == "D")
    assert point.get_xydata()[0] == pytest.approx((trusted.mean(), (~r[trusted]).mean()))
    assert any(np.allclose(line.get_ydata(), 0.1) for line in ax.lines)
    curve = next(line for line in ax.lines if line.get_label() == "error among the trusted")
    assert curve.get_xydata()[-1] == pytest.approx((1.0, (~r).mean()))
    assert "Certified point" in plot.alt


def test_the_chooser_marks_the_threshold_in_both_panels(scored):
    c, r = scored
    trusted = c >= 0.9
    plot = plots.plot_threshold_chooser(c, r, threshold=0.9)
    marks = [next(line for line in ax.lines if line.get_marker() == "D") for ax in plot.figure.axes]
    assert marks[0].get_xydata()[0] == pytest.approx((0.9, (~r[trusted]).mean()))
    assert marks[1].get_xydata()[0] == pytest.approx((0.9, trusted.mean()))


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
@pytest.mark.parametrize(
    ("confidence", "correct"),
    [
        ([0.7], [True]),
        ([1.0] * 30, [True] * 30),
        ([0.0] * 30, [False] * 30),
        ([0.5, 1.0] * 15, [True, False] * 15),
        (np.linspace(0, 1, 5000), np.arange(5000) % 3 > 0),
    ],
    ids=["one", "certain and right", "zero and wrong", "two values", "many"],
)
def test_extreme_data_still_draw(draw, confidence, correct):
    ET.fromstring(draw(confidence, correct).svg())  # noqa: S314


def test_a_threshold_that_trusts_nothing_has_no_point(scored):
    plot = plots.plot_risk_coverage(*scored, certified_threshold=2.0)
    assert all(line.get_marker() != "D" for line in plot.figure.axes[0].lines)


def test_bad_arguments_are_refused(scored):
    c, r = scored
    with pytest.raises(dc.InvalidData, match=r"row 0: 1\.2"):
        plots.plot_reliability([1.2], [True])
    with pytest.raises(dc.InvalidParameter, match="n_bins"):
        plots.plot_confidence_histogram(c, r, n_bins=0)
    with pytest.raises(dc.InvalidParameter, match="alpha"):
        plots.plot_risk_coverage(c, r, alpha=1.0)
    with pytest.raises(dc.InvalidParameter, match="level"):
        plots.plot_threshold_chooser(c, r, level=0.0)


def test_neither_pyplot_nor_torch_is_imported():
    code = (
        "import sys, demur.calibration; assert 'matplotlib' not in sys.modules;"
        "import demur.calibration.plots; print([m for m in ('matplotlib.pyplot', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
