"""The tables of the synthetic benchmark, and what they were expected to show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.synthetic.arms import Result

#: Farther than this from its own fixed point, an arm is said not to have converged.
CONVERGED = 0.03


def mean(results: Sequence[Result], task: str, arm: str, figure: str) -> float:
    """Over seeds."""
    return float(np.mean([getattr(r, figure) for r in results if (r.task, r.arm) == (task, arm)]))


@dataclass(frozen=True)
class Names:
    """The arms of one half that the expectations are about. `aware`: what is compared with GRPO."""

    grpo: str
    aware: tuple[str, ...]
    gold: str
    paper: str
    others_argmax: str
    paper_argmax: str


DIRECT = Names(
    grpo="GRPO",
    aware=("GRPO + paper", "GRPO + others", "GRPO + gold", "GRPO + Brier"),
    gold="SFT = gold alone",
    paper="paper alone",
    others_argmax="others alone, argmax",
    paper_argmax="paper alone, argmax",
)
REASONED = Names(
    grpo="GRPO",
    aware=("paper, clamped", "paper", "others", "gold", "Brier"),
    gold="gold",
    paper="paper",
    others_argmax="others, argmax",
    paper_argmax="paper, argmax",
)
_COLUMNS = {
    "accuracy": "accuracy",
    "ECE": "ece",
    "equal count": "ece_equal_count",
    "NLL": "nll",
    "confidence": "mean_confidence",
    "KL from pi": "kl",
    "TV to pi": "to_posterior",
}
_MORE = {"drawn accuracy": "drawn_accuracy", "true tallies": "tally"}


def table(task: str, best: float, results: Sequence[Result]) -> str:
    """One task's arms, means over seeds; with thoughts, how often decisions are right when drawn and tallies true."""
    ours = [r for r in results if r.task == task]
    seeds, noise = len({r.seed for r in ours}), float(np.mean([r.ece_noise for r in ours]))
    more = _MORE if all(hasattr(r, "tally") for r in ours) else {}
    mode = ", with thoughts" if more else ""
    lines = [
        f"\n### {task}{mode}: {_seeds(seeds)}; nobody can be right more often than {best:.3f}\n",
        f"Noise floor of the ECE: {noise:.3f}.\n",
        f"| arm | {' | '.join((*_COLUMNS, 'TV to own fixed point', *more))} |",
        "|---" * (len(_COLUMNS) + len(more) + 2) + "|",
    ]
    for arm in dict.fromkeys(r.arm for r in ours):
        cells = [f"{mean(ours, task, arm, name):.3f}" for name in _COLUMNS.values()]
        distance = mean(ours, task, arm, "to_fixed_point")
        cells.append(f"{distance:.3f}" + ("" if distance <= CONVERGED else " (not converged)"))
        cells += [f"{mean(ours, task, arm, name):.3f}" for name in more.values()]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"means of {count} seeds"


def claims(results: Sequence[Result], names: Names = DIRECT) -> str:
    """What was expected before any run, and whether it came out; only what the arms at hand can tell."""
    lines = ["\n| expected | task | found | so? |", "|---|---|---|---|"]
    trained = {r.arm for r in results}

    def row(text: str, task: str, needs: set[str], found: Callable[[], tuple[str, bool]]) -> None:
        if needs <= trained:
            figures, so = found()
            lines.append(f"| {text} | {task} | {figures} | {'yes' if so else 'NO'} |")

    for task in dict.fromkeys(r.task for r in results):

        def of(arm: str, figure: str, task: str = task) -> float:
            return mean(results, task, arm, figure)

        def extreme() -> tuple[str, bool]:
            value = of(names.grpo, "mean_confidence")
            return f"mean confidence {value:.3f}", value > 0.95

        row("GRPO drives confidence to the extremes", task, {names.grpo}, extreme)
        for arm in names.aware:

            def keeps(arm: str = arm) -> tuple[str, bool]:
                accuracy = of(arm, "accuracy") - of(names.grpo, "accuracy")
                ece = of(arm, "ece") - of(names.grpo, "ece")
                return f"accuracy {accuracy:+.3f}, ECE {ece:+.3f}", accuracy >= -0.01 and ece <= -0.03

            row(f"{arm}: accuracy within a point of GRPO's, ECE 3 points lower", task, {names.grpo, arm}, keeps)

        def nearer() -> tuple[str, bool]:
            gold, paper = of(names.gold, "kl"), of(names.paper, "kl")
            return f"KL {gold:.4f} against {paper:.4f}", gold < paper

        if task != "K = 2":
            row("gold is nearer to pi than paper", task, {names.gold, names.paper}, nearer)

        def at_the_top() -> tuple[str, bool]:
            others, paper = of(names.others_argmax, "ece"), of(names.paper_argmax, "ece")
            return f"ECE {others:.3f} against {paper:.3f}", others < paper

        row(
            "others is better calibrated at the top than paper, both by argmax",
            task,
            {names.others_argmax, names.paper_argmax},
            at_the_top,
        )
    return "\n".join(lines)
