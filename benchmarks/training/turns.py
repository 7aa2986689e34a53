"""Two trainers in one process that take their optimiser steps in turn, each step timed.

On a machine that does other work too, the process's own CPU time says more than the clock: it is kept as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Semaphore, Thread
from time import perf_counter, process_time
from typing import Any

import numpy as np
from scipy import stats
from transformers import TrainerCallback


class Turn(TrainerCallback):  # type: ignore[misc]
    """Waits for its turn, times the step, hands over. `seconds`, `cpu_seconds`: of every optimiser step."""

    def __init__(self, mine: Semaphore, others: Semaphore) -> None:
        self._mine, self._others = mine, others
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._mine.acquire()
        self._started, self._cpu = perf_counter(), process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(perf_counter() - self._started)
        self.cpu_seconds.append(process_time() - self._cpu)
        self._others.release()


@dataclass(frozen=True)
class Pairs:
    """Seconds of ours and theirs, pair by pair, by the clock and of CPU time."""

    ours: list[float]
    theirs: list[float]
    our_cpu: list[float]
    their_cpu: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours by theirs, by the clock."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def cpu_ratios(self) -> list[float]:
        """Ours by theirs, of CPU time."""
        return [mine / other for mine, other in zip(self.our_cpu, self.their_cpu, strict=True)]


def in_turn(first: Any, second: Any) -> Pairs:
    """Trains both, a step of the one and then of the other; the first two pairs are left out."""
    a, b = Semaphore(1), Semaphore(0)
    turns = Turn(a, b), Turn(b, a)
    failed: list[BaseException] = []

    def train(trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException as error:
            failed.append(error)
            a.release(1000)
            b.release(1000)

    for trainer, turn in zip((first, second), turns, strict=True):
        trainer.add_callback(turn)
    threads = [Thread(target=train, args=(trainer,)) for trainer in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    mine, other = turns
    return Pairs(mine.seconds[2:], other.seconds[2:], mine.cpu_seconds[2:], other.cpu_seconds[2:])


def upper_bound_of_median(values: Sequence[float], level: float = 0.95) -> float:
    """One-sided, exact for any distribution: the order statistic that the median exceeds with chance 1 - level."""
    n = len(values)
    rank = int(stats.binom.ppf(level, n, 0.5)) + 1
    if rank > n:
        raise ValueError(f"{n} values are too few for a bound at {level}")
    return float(np.sort(values)[rank - 1])
