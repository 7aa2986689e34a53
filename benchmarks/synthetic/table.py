"""The tables of the synthetic benchmark, and what they were expected to show."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.synthetic.arms import ARMS, Result

#: Farther than this from its own fixed point, an arm is said not to have converged.
CONVERGED = 0.03


def mean(results: Sequence[Result], task: str, arm: str, figure: str) -> float:
    """Over seeds."""
    return float(np.mean([getattr(r, figure) for r in results if (r.task, r.arm) == (task, arm)]))


def table(task: str, best: float, results: Sequence[Result]) -> str:
    """One task's arms, means over seeds."""
    ours = [r for r in results if r.task == task]
    seeds, noise = len({r.seed for r in ours}), float(np.mean([r.ece_noise for r in ours]))
    lines = [
        f"\n### {task}: means of {seeds} seeds; nobody can be right more often than {best:.3f}\n",
        f"Noise floor of the ECE: {noise:.3f}.\n",
        "| arm | accuracy | ECE | equal count | NLL | confidence | KL from pi | TV to pi | TV to own fixed point |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in [arm for arm in ARMS if any(r.arm == arm for r in ours)]:
        cells = [
            f"{mean(ours, task, arm, name):.3f}"
            for name in ("accuracy", "ece", "ece_equal_count", "nll", "mean_confidence", "kl", "to_posterior")
        ]
        distance = mean(ours, task, arm, "to_fixed_point")
        cells.append(f"{distance:.3f}" + ("" if distance <= CONVERGED else " (not converged)"))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims(results: Sequence[Result]) -> str:
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
            value = of("GRPO", "mean_confidence")
            return f"mean confidence {value:.3f}", value > 0.95

        row("GRPO drives confidence to the extremes", task, {"GRPO"}, extreme)
        for arm in ("GRPO + paper", "GRPO + others", "GRPO + gold", "GRPO + Brier"):

            def keeps(arm: str = arm) -> tuple[str, bool]:
                accuracy = of(arm, "accuracy") - of("GRPO", "accuracy")
                ece = of(arm, "ece") - of("GRPO", "ece")
                return f"accuracy {accuracy:+.3f}, ECE {ece:+.3f}", accuracy >= -0.01 and ece <= -0.03

            row(f"{arm}: accuracy within a point of GRPO's, ECE 3 points lower", task, {"GRPO", arm}, keeps)

        def nearer() -> tuple[str, bool]:
            gold, paper = of("SFT = gold alone", "kl"), of("paper alone", "kl")
            return f"KL {gold:.4f} against {paper:.4f}", gold < paper

        if task != "K = 2":
            row("gold is nearer to pi than paper", task, {"SFT = gold alone", "paper alone"}, nearer)

        def at_the_top() -> tuple[str, bool]:
            others, paper = of("others alone, argmax", "ece"), of("paper alone, argmax", "ece")
            return f"ECE {others:.3f} against {paper:.3f}", others < paper

        row(
            "others is better calibrated at the top than paper, both by argmax",
            task,
            {"others alone, argmax", "paper alone, argmax"},
            at_the_top,
        )
    return "\n".join(lines)
