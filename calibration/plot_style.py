"""How every figure looks and is written: no pyplot, no global state, the same bytes for the same data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from threading import Lock
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's palette: told apart with any colour vision; shape and line style repeat every distinction.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
INK, QUIET, GRID, BAND = "#1f2328", "#59636e", "#e4e7eb", "#d5dae1"

# savefig reads the salt of element ids from the global settings, so they are set around one write at a time.
_SVG_LOCK = Lock()
_SVG_SETTINGS = {"svg.hashsalt": "demur", "svg.fonttype": "none"}


@dataclass(frozen=True, eq=False)
class Plot:
    """A drawn figure and the sentence that says what it shows to those who cannot see it.

    Attributes:
        figure: the matplotlib figure.
        alt: text alternative, with the figures that matter.
    """

    figure: Figure
    alt: str

    def svg(self) -> str:
        """Return a standalone SVG document with real text and the alternative as its label; deterministic."""
        buffer = BytesIO()
        with _SVG_LOCK, mpl.rc_context(_SVG_SETTINGS):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        drawing = buffer.getvalue().decode()
        return re.sub("<svg ", f'<svg role="img" aria-label="{escape(self.alt)}" ', drawing, count=1)

    def png(self, *, dpi: int = 144) -> bytes:
        """Return a PNG image; deterministic."""
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None, "Description": self.alt})
        return buffer.getvalue()


def new_figure(
    title: str, subtitle: str, *, height: float = 4.4, rows: Sequence[float] = (1.0,), key_lines: int = 0
) -> tuple[Figure, list[Any]]:
    """Return a figure, one column of axes that share x, and a heading of two lines at the left.

    `key_lines` leaves room under the heading for a `key` of so many lines.
    """
    figure = Figure(figsize=(5.6, height), facecolor="white")
    FigureCanvasAgg(figure)
    head = (0.72 + 0.19 * key_lines) / height
    grid = figure.add_gridspec(
        len(rows), 1, height_ratios=list(rows), hspace=0.14, left=0.13, right=0.95, bottom=0.5 / height, top=1 - head
    )
    axes: list[Any] = []
    for row in range(len(rows)):
        ax = figure.add_subplot(grid[row, 0], sharex=axes[0] if axes else None)
        _style(ax)
        if row < len(rows) - 1:
            ax.tick_params(labelbottom=False)
        axes.append(ax)
    figure.text(0.02, 1 - 0.1 / height, title, color=INK, fontsize=12, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.37 / height, subtitle, color=QUIET, fontsize=9, va="top")
    return figure, axes


def percent_axis(axis: Any) -> None:
    """Label an axis of shares in percent, with decimals only where a tick needs them."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%"))


def legend(ax: Any, **options: Any) -> None:
    """A legend that does not fight the data."""
    box = ax.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5, labelcolor=INK, **options)
    box.set_zorder(5)


def key(ax: Any) -> None:
    """A legend in two columns under the figure's heading, where no data can be."""
    figure = ax.figure
    figure.legend(
        *ax.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.53 / figure.get_figheight()),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        borderpad=0.2,
        labelspacing=0.3,
    )


def percent(share: float) -> str:
    """A share for a sentence: 4.0%, 61%."""
    return f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


def level_percent(level: float) -> str:
    """A level as it was asked for: 95%, 97.5%."""
    return f"{100 * level:.10g}%"


def _style(ax: Any) -> None:
    ax.set_axisbelow(True)
    ax.grid(color=GRID, linewidth=0.8)
    ax.tick_params(colors=QUIET, labelsize=9, length=0)
    ax.tick_params(axis="x", pad=7)  # clear of the lowest label of the other axis
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(BAND)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.xaxis.label.set_size(9.5)
    ax.yaxis.label.set_size(9.5)
