"""Arms in turn: whatever else the machine does then falls on all of them alike."""

import sys
from collections.abc import Callable, Sequence

ROUNDS = 5


def in_turn(arms: Sequence[Callable[[int], float]], rounds: int = ROUNDS) -> list[list[float]]:
    """The figures of each arm, A B A B ...; an arm is called with the number of its round.

    Round 0 warms caches and is not counted.
    """
    figures: list[list[float]] = []
    for number in range(rounds + 1):
        figures.append([arm(number) for arm in arms])
        shown = "warming caches" if number == 0 else "  ".join(f"{figure:.2f}" for figure in figures[-1])
        print(f"  round {number}: {shown}", file=sys.stderr, flush=True)
    return [list(arm) for arm in zip(*figures[1:], strict=True)]
