"""What becomes of the best option's probability, against what it should be."""

from collections.abc import Sequence

import numpy as np

from benchmarks.synthetic.arms import Result
from demur.calibration.plot_style import BLUE, GREEN, INK, ORANGE, QUIET, RED, Plot, legend, new_figure, percent_axis

SHOWN = {
    "GRPO": (RED, "o"),
    "GRPO + paper": (ORANGE, "s"),
    "paper alone, argmax": (INK, "v"),
    "SFT = gold alone": (BLUE, "D"),
    "paper alone": (GREEN, "^"),
}


def figure(results: Sequence[Result]) -> Plot:
    """Trained arms as points (means over seeds), their fixed points as lines; one panel a task."""
    tasks = list(dict.fromkeys(r.task for r in results))
    drawn, axes = new_figure(
        "Where each objective ends",
        "points: trained from scratch; lines: their fixed points; dotted: the truth",
        height=7.6,
        rows=(1.0,) * len(tasks),
    )
    for ax, task in zip(axes, tasks, strict=True):
        ax.plot([0, 1], [0, 1], color=QUIET, linewidth=1.2, linestyle=(0, (1, 2)))
        for arm, (color, marker) in SHOWN.items():
            curves = [r.curve for r in results if (r.task, r.arm) == (task, arm)]
            if curves:
                truth, trained, fixed = np.mean(curves, axis=0).T
                ax.plot(truth, fixed, color=color, linewidth=1.3)
                ax.plot(truth, trained, marker, color=color, markersize=5, markeredgecolor="white", label=arm)
        ax.set_xlim(0.35, 1.01)
        ax.set_ylim(0.25, 1.03)
        ax.set_ylabel(f"{task}: probability given to it")
        percent_axis(ax.yaxis)
    percent_axis(axes[-1].xaxis)
    axes[-1].set_xlabel("true posterior of the best option")
    legend(axes[0], loc="lower left")
    return Plot(drawn, "The probability that trained models give the truly best option, against its true posterior.")
