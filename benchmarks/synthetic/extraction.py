"""The extraction diagnosis of the reasoned arms, beside the paper's figures."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.synthetic.reasoned import ReasonedResult
from demur.training.extraction import CONTROL, OTHER_DECISION, OTHER_ITEM, OTHER_ITEM_CONTROL, Diagnosis


def _of(kind: str, figure: str) -> Callable[[Diagnosis], float]:
    return lambda found: getattr(found.swaps[kind], figure)


_COLUMNS: dict[str, Callable[[Diagnosis], float]] = {
    "p > 0.99": lambda found: found.extreme,
    "same prompt, other decision: flips": _of(OTHER_DECISION, "followed"),
    "same, control: stays": _of(CONTROL, "kept"),
    "other item, other decision: flips": _of(OTHER_ITEM, "followed"),
    "confidence then": _of(OTHER_ITEM, "confidence"),
    "p > 0.99 then": _of(OTHER_ITEM, "extreme"),
    "other item, same decision: stays": _of(OTHER_ITEM_CONTROL, "kept"),
}


def extraction_table(results: Sequence[ReasonedResult]) -> str:
    """Means over the seeds in which there was something to swap."""
    lines = [f"| task | arm | {' | '.join(_COLUMNS)} |", "|---" * (len(_COLUMNS) + 2) + "|"]
    for task in dict.fromkeys(r.task for r in results):
        for arm in dict.fromkeys(r.arm for r in results if r.task == task):
            found = [r.extraction for r in results if (r.task, r.arm) == (task, arm)]
            cells = []
            for figure in _COLUMNS.values():
                values = np.array([figure(one) for one in found])
                cells.append(f"{np.nanmean(values):.3f}" if (~np.isnan(values)).any() else "")
            lines.append(f"| {task} | {arm} | {' | '.join(cells)} |")
    lines.append("| | the paper, Qwen3 | 0.976 to 0.999 | 0.92 to 1.00 | | | near 1 | | |")
    return "\n".join(lines)
