"""The synthetic benchmark in small: its posterior is the truth, and its arms end where they should."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.synthetic.__main__ import FIGURE, FOLDER, HALVES, grid, load, report
from benchmarks.synthetic.arms import ARMS, Budget, train_arm
from benchmarks.synthetic.extraction import extraction_table
from benchmarks.synthetic.figure import figure
from benchmarks.synthetic.reasoned import SFT, START, ReasonedBudget
from benchmarks.synthetic.table import REASONED, claims, table
from benchmarks.synthetic.tally import Tally
from benchmarks.synthetic.task import TASKS

QUICK = HALVES["direct"].quick


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
    assert paper.accuracy >= grpo.accuracy - 0.01
    assert paper.ece < grpo.ece - 0.03


def test_a_grid_goes_on_where_it_stopped(tmp_path):
    path, tiny = tmp_path / "results.jsonl", Budget(steps=2, prompts=8, held_out=200)
    arms = list(ARMS)[:2]
    first = grid(HALVES["direct"], arms[:1], 1, tiny, path)
    with path.open("a") as file:
        file.write('{"task": "K = 2", "arm"')
    assert load(path) == first
    both = grid(HALVES["direct"], arms, 1, tiny, path)
    assert [(r.task, r.arm) for r in both] == [(task, arm) for task in TASKS for arm in arms[:1]] + [
        (task, arm) for task in TASKS for arm in arms[1:]
    ]
    assert both[: len(first)] == first
    assert load(path) == both
    assert all(arm in table("K = 2", 0.8, both) for arm in arms)
    # One arm cannot be compared with another: nothing is claimed.
    assert claims(first).count("\n") == 2
    assert "Where each objective ends" in figure(both).svg()


def test_a_tally_counts_the_evidence():
    tally = Tally(TASKS["K = 2"])
    symbols = np.array([[0, 1, 1, 0, 0, 0, 1, 0]])
    counts = tally.thoughts(symbols) - tally.evidence.vocabulary
    assert counts.tolist() == [[0, 8, 9, 1, 2, 3, 10, 4]]
    ids = tally.sequences(symbols, tally.thoughts(symbols), np.array([1]))[0].tolist()
    example = tally.examples(symbols, np.array([1]))[0]
    assert ids[: len(example.prompt)] == list(example.prompt)
    assert ids[-2:] == [*example.after_thought, example.label_ids[1]]
    assert len({*ids[:8], tally.answer, tally.end, tally.pad, *example.label_ids, ids[8]}) == 2 + 3 + 2 + 1


def test_arms_with_thoughts_go_on_where_they_stopped_and_move_decisions(tmp_path):
    path = tmp_path / "reasoned.jsonl"
    budget = ReasonedBudget(start_steps=120, steps=15, learning_rate=2e-3, held_out=400, diagnosed=20)
    half = HALVES["reasoned"]
    start, sft, gold = (half.train("K = 2", arm, 0, budget) for arm in (START, SFT, "gold"))
    # The common start counts, and is as underconfident as the noise in its labels makes it.
    assert start.tally > 0.8
    assert start.to_fixed_point < 0.08 < start.to_posterior
    assert sft.nll < start.nll
    assert gold.nll < start.nll
    assert start.extraction.swaps["other item, other decision"].n > 0
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in (start, sft, gold)))
    assert [r.arm for r in load(path)] == [START, SFT, "gold"]
    assert load(path)[0].extraction == start.extraction
    assert "| K = 2 | gold |" in extraction_table(load(path))
    assert "true tallies" in table("K = 2", 0.8, load(path))
    assert claims(load(path), REASONED).count("\n") == 2


def test_the_document_shows_the_committed_results():
    text = FIGURE.with_suffix(".md").read_text()
    for half in HALVES.values():
        assert report(half, load(FOLDER / half.file)).strip() in text
    assert FIGURE.read_text() == figure(load(FOLDER / HALVES["direct"].file)).svg()
