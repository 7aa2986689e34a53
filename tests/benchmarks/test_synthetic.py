"""The synthetic benchmark in small: its posterior is the truth, and its arms end where they should."""

import numpy as np
import pytest

from benchmarks.synthetic.__main__ import FIGURE, QUICK, RESULTS, grid, load
from benchmarks.synthetic.arms import ARMS, Budget, bayes_accuracy, train_arm
from benchmarks.synthetic.figure import figure
from benchmarks.synthetic.table import claims, table
from benchmarks.synthetic.task import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_drawn_from_the_posterior(name):
    """Among prompts with the same evidence, each label comes as often as the posterior says."""
    task = TASKS[name]
    symbols, hidden = task.draw(200_000, np.random.default_rng(0))
    pi = task.posterior(symbols)
    for option in range(task.k):
        order = np.argsort(pi[:, option])
        for part in np.array_split(order, 10):
            p = pi[part, option]
            error = np.sqrt((p * (1 - p)).mean() / len(part))
            assert abs((hidden[part] == option).mean() - p.mean()) < 4 * error


@pytest.mark.parametrize(("arm", "distance"), [("SFT = gold alone", 0.05), ("GRPO + paper, sampled", 0.07)])
def test_an_arm_ends_near_its_own_fixed_point(arm, distance):
    result = train_arm("K = 4", arm, 0, QUICK)
    assert result.to_fixed_point < distance
    # And learned something: the label alone would be right in a quarter of cases.
    assert result.accuracy > 0.6
    assert (result.to_posterior < 0.05) == (arm == "SFT = gold alone")


def test_grpo_is_extreme_where_the_calibration_term_is_not():
    grpo, paper = (train_arm("K = 2", arm, 0, QUICK) for arm in ("GRPO", "GRPO + paper"))
    assert grpo.mean_confidence > 0.99
    assert grpo.ece > 0.15
    assert paper.accuracy == pytest.approx(grpo.accuracy, abs=0.01)
    assert paper.ece < grpo.ece - 0.03


def test_a_grid_goes_on_where_it_stopped(tmp_path):
    path, tiny = tmp_path / "results.jsonl", Budget(steps=2, prompts=8, held_out=200)
    arms = list(ARMS)[:2]
    first = grid(arms[:1], 1, tiny, path)
    with path.open("a") as file:
        file.write('{"task": "K = 2", "arm"')
    assert load(path) == first
    both = grid(arms, 1, tiny, path)
    assert [(r.task, r.arm) for r in both] == [(task, arm) for task in TASKS for arm in arms[:1]] + [
        (task, arm) for task in TASKS for arm in arms[1:]
    ]
    assert both[: len(first)] == first
    assert load(path) == both
    assert all(arm in table("K = 2", 0.8, both) for arm in arms)
    # One arm cannot be compared with another: nothing is claimed.
    assert claims(first).count("\n") == 2
    assert "Where each objective ends" in figure(both).svg()


def test_the_document_shows_the_committed_results():
    results = load(RESULTS)
    text = FIGURE.with_suffix(".md").read_text()
    assert all(table(name, bayes_accuracy(task), results) in text for name, task in TASKS.items())
    assert claims(results) in text
    assert FIGURE.read_text() == figure(results).svg()
