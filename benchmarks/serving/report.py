"""Rows of figures: what was compared, both figures, their ratio, and what is required of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

_HEAD = ("what", "ours", "theirs", "ratio", "required", "met")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. `theirs` is None where nothing is compared, `ratio` where the figure itself is required.

    `at_least` and `at_most` bound `ratio`, or `ours` where there is none; None where the figure is only shown.
    """

    what: str
    unit: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the requirement is met; None where there is none."""
        value = self.ours if self.ratio is None else self.ratio
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most

    @property
    def required(self) -> str:
        """The requirement in words."""
        unit = "x" if self.ratio is not None else f" {self.unit}"
        if self.at_least is not None:
            return f">= {self.at_least:g}{unit}"
        return "" if self.at_most is None else f"<= {self.at_most:g}{unit}"


def paired(what: str, unit: str, ours: Sequence[float], theirs: Sequence[float], **more: Any) -> Row:
    """A row of rounds taken in turn: medians of both, and the median of the rounds' ratios, ours by theirs.

    What slows the machine down slows both arms of a round, so a ratio is steadier than either figure.
    """
    ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True))
    return Row(what=what, unit=unit, ours=median(ours), theirs=median(theirs), ratio=ratio, **more)


def faster(what: str, ours: Sequence[float], theirs: Sequence[float], **more: Any) -> Row:
    """A row of rates: the ratio says how many times theirs ours is."""
    return paired(what, "decisions/s", ours, theirs, **more)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        theirs = "" if row.theirs is None else f"{_digits(row.theirs)} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        note = f" ({row.note})" if row.note else ""
        cells = (row.what + note, f"{_digits(row.ours)} {row.unit}", theirs, ratio, row.required, met)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def json_line(rows: Sequence[Row], **more: Any) -> str:
    """The rows as one line of JSON."""
    return json.dumps({**more, "rows": [{**asdict(row), "met": row.met} for row in rows]})


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
