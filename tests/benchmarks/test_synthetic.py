"""The synthetic benchmark in small: its posterior is the truth, and its arms end where they should."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.synthetic.__main__ import FIGURE, FOLDER, HALVES, grid, load, report
from benchmarks.synthetic.arms import ARMS, Budget, train_arm
from benchmarks.synthetic.extraction import extraction_table
from benchmarks.synthetic.figure import figure
from benchmarks.synthetic.files import COLOURS, EVIDENCE, FILES, Rows, write_files
from benchmarks.synthetic.reasoned import SFT, START, ReasonedBudget
from benchmarks.synthetic.table import REASONED, claims, table
from benchmarks.synthetic.tally import Tally
from benchmarks.synthetic.task import TASKS
from demur.training import run
from demur.training.comparison import row_scores
from demur.training.readings import load_model, read_sets
from demur.training.recipefile import load_recipes

QUICK = HALVES["direct"].quick
RECIPES = Path(__file__).parents[2] / "recipes/synthetic"


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


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write_files(folder, {"train": Rows(5200), "start": Rows(1600, noise=0.5), "held_out": Rows(500)})
    return folder


def cells_of(name, folder, *changes):
    """The recipes of a file, about small files instead of those that it names; all begin untaught."""
    rows = "start" if name == "start" else "train"
    paths = (f"model.path={folder}/model", f"data.train={{path: {folder}/{rows}.jsonl}}")
    return load_recipes(
        RECIPES / f"{name}.yaml", [*paths, f"data.evaluate.held_out.path={folder}/held_out.jsonl", *changes]
    )


def test_the_rows_of_the_recipes_are_all_different_and_carry_posterior_and_tally(files):
    seen = []
    for name, noise in (("train", 0.0), ("start", 0.5), ("held_out", 0.0)):
        rows = [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]
        seen += [row["input"] for row in rows]
        balls = [row["input"].split() for row in rows]
        soft = np.array([row["meta"]["soft"] for row in rows])
        pi = EVIDENCE.posterior(np.array([[COLOURS.index(ball) for ball in drawn] for drawn in balls]))
        np.testing.assert_allclose(soft, (1 - noise) * pi + noise / 4)
        # The label is a draw from it.
        gold = np.array(["ABCD".index(row["label"]) for row in rows])
        right = soft[np.arange(len(rows)), gold]
        error = np.sqrt(((soft**3).sum(axis=1) - (soft**2).sum(axis=1) ** 2).sum()) / len(rows)
        assert abs(right.mean() - (soft**2).sum(axis=1).mean()) < 4 * error
        for drawn, row in zip(balls, rows, strict=True):
            counted = [f"{ball}-{drawn[: place + 1].count(ball)}" for place, ball in enumerate(drawn)]
            assert row["thought"] == " ".join(counted)
    assert len(seen) == len(set(seen)) == 7300


@pytest.mark.parametrize("name", ["direct", "start", "reasoned"])
def test_every_recipe_meets_a_row_at_most_once_and_is_read_whole(name, files):
    for cell, recipe in load_recipes(RECIPES / f"{name}.yaml").cells.items():
        rows = FILES["start" if name == "start" else "train"].count
        met = recipe.optimiser.steps * recipe.optimiser.prompts
        assert recipe.learns_rollouts or met <= min(recipe.data.train.limit or rows, rows), cell
    found = cells_of(name, files)
    recipe = next(iter(found.cells.values()))
    prepared = run.prepare(recipe, found.folder)
    assert not prepared.data.dropped
    unknown = prepared.tokenizer.unk_token_id
    for example in (*prepared.data.train[:50], *prepared.data.evaluate["held_out"][:50]):
        assert unknown not in (*example.prompt, *example.thought, *example.after_thought, *example.label_ids)
        assert example.shares is not None
    if name == "start":
        assert {len(example.thought) for example in prepared.data.train} == {12}


def test_by_its_recipe_sft_comes_nearer_to_the_posterior(files, tmp_path):
    found = cells_of("direct", files, "optimiser.steps=40")
    prepared = run.prepare(found.cells["sft"], found.folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = run.train(prepared, tmp_path, resume=False, disable_tqdm=True)
        kl = [
            row_scores(read_sets(prepared, load_model(prepared, at), batch=500)["held_out"])["kl"].mean()
            for at in (None, trained)
        ]
    finally:
        torch.set_num_threads(threads)
    assert kl[1] < 0.5 * kl[0]
