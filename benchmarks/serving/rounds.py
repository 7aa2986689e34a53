"""Arms in turn: whatever else the machine does then falls on all of them alike."""

import sys
from collections.abc import Callable, Sequence

ROUNDS = 5


def in_turn(arms: Sequence[Callable[[int], float]], rounds: int = ROUNDS) -> list[list[float]]:
    """The figures of each arm, A B A B ...; an arm is called with the number of its round.

    Round 0 warms caches and is not counted.
    """
    figures: list[list[float]] = [[] for _ in arms]
    for number in range(rounds + 1):
        for arm, kept in zip(arms, figures, strict=True):
            figure = arm(number)
            if number:
                kept.append(figure)
        print(f"  round {number}:", *(f"{arm[-1]:.2f}" for arm in figures if arm), file=sys.stderr, flush=True)
    return figures
