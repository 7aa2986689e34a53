"""A grid's table and its figure: accuracy against calibration error."""

from collections.abc import Sequence

from demur.calibration.plot_style import BLUE, GREEN, INK, ORANGE, QUIET, RED, Plot, legend, new_figure, percent_axis
from demur.training.comparison import Difference, Row
from demur.training.jsontext import json_text

_COLUMNS = {
    "accuracy": "accuracy",
    "NLL": "nll",
    "Brier": "brier",
    "AURC": "aurc",
    "confidence": "confidence",
    "ECE": "ece",
    "equal count": "ece_count",
    "noise floor": "noise",
    "raw ECE": "raw_ece",
    "raw equal count": "raw_ece_count",
}
_SHARES = {"KL to shares": "kl", "TV to shares": "tv"}

_READ = (
    "NLL and Brier decide, as differences to `{}` with 95% intervals over rows and seeds. ECE has 15 bins and is to be "
    "seen beside its noise floor; raw: of the label's probability in the whole vocabulary."
)
_READ_SHARES = (
    " KL (nats) and TV are to the annotators' shares. With few annotators these are noisy, which on average adds the "
    "same to every arm's KL, not to its TV: read KL's differences."
)


def table(rows: Sequence[Row], reference: str) -> str:
    """Markdown: a table a set. A difference whose interval leaves out zero is in bold."""
    lines = []
    for name in dict.fromkeys(row.evaluated_on for row in rows):
        ours = [row for row in rows if row.evaluated_on == name]
        seeds = sorted({row.seeds for row in ours})
        shares = all(row.figures.kl is not None for row in ours)
        columns = _COLUMNS | (_SHARES if shares else {})
        compared = {"NLL": "nll", "Brier": "brier"} | ({"KL": "kl", "TV": "tv"} if shares else {})
        headers = ["arm", *columns, *(f"{name} less {reference}'s" for name in compared)]
        lines += [
            f"### {name}: {ours[0].n} rows, seeds an arm: {', '.join(map(str, seeds))}",
            "",
            _READ.format(reference) + (_READ_SHARES if shares else ""),
            "",
            f"| {' | '.join(headers)} |",
            "|---" * len(headers) + "|",
        ]
        for row in ours:
            arm = row.arm if row.post_hoc == "as it is" else f"{row.arm} + {row.post_hoc}"
            raw = row.post_hoc == "as it is"
            figures = [
                f"{getattr(row.figures, key):.3f}" if raw or not key.startswith("raw") else ""
                for key in columns.values()
            ]
            itself = row.arm == reference and raw
            gaps = ["" if itself else _difference(row.against[key]) for key in compared.values()]
            lines.append(f"| {' | '.join([arm, *figures, *gaps])} |")
        lines.append("")
    return "\n".join(lines)


def figure(rows: Sequence[Row]) -> Plot:
    """Accuracy against ECE; one panel a set. Filled: as trained; hollow: behind a temperature."""
    names = list(dict.fromkeys(row.evaluated_on for row in rows))
    arms = list(dict.fromkeys(row.arm for row in rows))
    colours, shapes = (BLUE, ORANGE, GREEN, RED, INK, QUIET), "osD^vPX*<>"
    drawn, axes = new_figure(
        "Accuracy against calibration error",
        "filled: as trained; hollow: with a temperature; bar: noise floor",
        height=1.2 + 3.2 * len(names),
        rows=(1.0,) * len(names),
    )
    for ax, name in zip(axes, names, strict=True):
        for row in rows:
            if row.evaluated_on == name and row.post_hoc in ("as it is", "temperature"):
                number = arms.index(row.arm)
                colour, plain = colours[number % len(colours)], row.post_hoc == "as it is"
                if plain:
                    ax.plot([row.figures.accuracy] * 2, [0, row.figures.noise], color=colour, linewidth=1, alpha=0.5)
                ax.plot(
                    row.figures.accuracy,
                    row.figures.ece,
                    shapes[number % len(shapes)],
                    color=colour,
                    markerfacecolor=colour if plain else "none",
                    markersize=6,
                    label=row.arm if plain else None,
                )
        ax.set_ylim(bottom=0)
        ax.set_ylabel(f"ECE on {name}")
        percent_axis(ax.yaxis)
    percent_axis(axes[-1].xaxis)
    axes[-1].set_xlabel("accuracy")
    legend(axes[0])
    best = min((row for row in rows if row.post_hoc == "as it is"), key=lambda row: row.figures.nll)
    return Plot(drawn, f"Accuracy and calibration error of {len(arms)} arms; the lowest NLL is that of {best.arm}.")


def to_json(rows: Sequence[Row]) -> str:
    """All figures of all rows."""
    return json_text(rows) + "\n"


def _difference(gap: Difference) -> str:
    text = f"{gap.value:+.3f} ({gap.lower:+.3f} to {gap.upper:+.3f})"
    return f"**{text}**" if gap.lower > 0 or gap.upper < 0 else text
