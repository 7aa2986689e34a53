"""The parts of the training benchmark that its figures rest on."""

import numpy as np

from benchmarks.training.turns import Turn, in_turn, upper_bound_of_median
from demur.training.objectives import Objective
from tests.training import tiny


def test_the_bound_of_the_median_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [upper_bound_of_median(np.exp(rng.normal(size=30))) >= 1.0 for _ in range(2000)]
    assert 0.95 - 0.015 <= np.mean(held) <= 0.99


def test_two_trainers_step_in_turn(tmp_path, monkeypatch):
    order, usual = [], Turn.on_step_end

    def noted(self, *given, **more):
        order.append(id(self))
        usual(self, *given, **more)

    monkeypatch.setattr(Turn, "on_step_end", noted)
    trainers = [
        tiny.direct_trainer(tmp_path / name, Objective(), tiny.examples(), optimiser={"steps": 5}) for name in "ab"
    ]
    pairs = in_turn(*trainers)
    assert len(pairs.ratios) == len(pairs.cpu_ratios) == 3
    assert min(pairs.ratios + pairs.cpu_ratios) > 0
    assert order[::2] == [order[0]] * 5
    assert order[1::2] == [order[1]] * 5
    assert order[0] != order[1]
