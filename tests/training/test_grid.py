"""Grids on a tiny model: trained, evaluated, stopped and resumed, compared."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from demur.server.cli import main
from demur.training import run
from demur.training.comparison import compare, paired_difference, row_scores
from demur.training.grid import READINGS, cells_of, collect
from demur.training.lock import held
from demur.training.readings import Readings, load_model, load_readings, ordered, read_sets, save_readings
from demur.training.recipefile import load_recipes
from tests.models import build_model

TASK = """\
name: sky
question: Which colour?
options: [red, green, blue]
readout: letter
"""
GRID = """\
base:
  name: "{cell}"
  task: task.yaml
  method: grpo
  mode: direct
  model: {path: model}
  data:
    train: {path: train.jsonl}
    evaluate: {shifted: {path: shifted.jsonl}}
    folds: 2
  rollout: {group: 2}
  optimiser: {learning_rate: 1e-3, steps: 2, prompts: 2, micro_batch: 2, gradient_checkpointing: false}
  log: {to: []}
axes:
  arm:
    sft: {method: sft}
  fold:
    first: {data.fold: 0}
    second: {data.fold: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    build_model("llama", folder / "model")
    (folder / "task.yaml").write_text(TASK)
    for name, start, count in (("train", 0, 60), ("shifted", 100, 30)):
        rows = [{"input": f"thing {i}", "label": ("red", "green", "blue")[i % 3]} for i in range(start, start + count)]
        if name == "train":
            rows = [row | {"meta": {"soft": [0.5, 0.25, 0.25]}} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "grid.yaml").write_text(GRID)
    return folder


def grid(*arguments: str | Path) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return CliRunner().invoke(main, ["grid", *map(str, arguments)])
    finally:
        torch.set_num_threads(threads)


def test_a_grid_trains_reads_resumes_and_compares(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = (folder / "grid.yaml", "--seeds", "2", "--out", tmp_path)
    usual, trained = run.train, []

    def stops(prepared: Any, out: Path, **more: Any) -> Path:
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(out)
        return usual(prepared, out, **more)

    monkeypatch.setattr(run, "train", stops)
    assert grid(*asked).exit_code != 0
    monkeypatch.setattr(run, "train", lambda prepared, out, **more: (trained.append(out), usual(prepared, out, **more)))
    result = grid(*asked)
    assert result.exit_code == 0, result.output
    # Two folds, two seeds; none was trained again.
    assert len(trained) == len(set(trained)) == 4
    assert not list(tmp_path.rglob("*.safetensors"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    plain = {(row["arm"], row["evaluated_on"]): row for row in rows if row["post_hoc"] == "as it is"}
    assert set(plain) == {(arm, name) for arm in ("base", "sft") for name in ("out_of_fold", "shifted")}
    # Both folds together are all the training rows, each read by a model that never saw it.
    assert plain["sft", "out_of_fold"]["n"] == 60
    assert plain["sft", "out_of_fold"]["seeds"] == 2
    assert plain["base", "out_of_fold"]["figures"]["nll"] != plain["sft", "out_of_fold"]["figures"]["nll"]
    assert "| sft + Platt |" in result.output
    assert "NLL less base's" in result.output
    assert (tmp_path / "accuracy_ece.svg").read_text().count("<svg") == 1
    # Only the training rows have shares of annotators.
    tables = {part.partition(":")[0]: part for part in result.output.split("### ")}
    for column in ("| KL to shares |", "| KL less base's |"):
        assert column in tables["out_of_fold"]
        assert column not in tables["shifted"]
    assert plain["sft", "shifted"]["figures"]["kl"] is None
    assert plain["sft", "out_of_fold"]["figures"]["kl"] > 0
    # The readings are the trained model's, not the base's.
    base = load_readings(next(tmp_path.glob("base-1/*/" + READINGS)))[0]["shifted"]
    tuned = load_readings(tmp_path / "sft.first/seed-0" / READINGS)[0]["shifted"]
    assert np.array_equal(base.hashes, tuned.hashes)
    assert np.abs(base.raw - tuned.raw).max() > 1e-6
    # A set that every fold has counts once.
    assert plain["sft", "shifted"]["n"] == 30
    # Neither a report nor another recipe touches them.
    assert (tmp_path / "table.md").read_text() in grid(*asked, "--report").output
    of_another = grid(*asked, "--report", "--set", "optimiser.steps=3")
    assert of_another.exit_code == 1
    assert "was run by another recipe or task" in of_another.output
    changed = grid(*asked, "--set", "optimiser.steps=3")
    assert changed.exit_code == 1
    assert "changed since it was run" in changed.output
    # A default that is written out, or that a later version adds, makes no other recipe.
    written_out = grid(*asked, "--set", "optimiser.weight_decay=0.0")
    assert written_out.exit_code == 0, written_out.output
    assert len(trained) == 4


def test_grids_in_one_folder_share_the_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = (folder / "grid.yaml", "--seeds", "1", "--no-base", "--out", tmp_path)
    usual, trained = run.train, []
    # Another process is in the first run, and dies once this one is in the second.
    other = ExitStack()
    other.enter_context(held(tmp_path / "sft.first" / "seed-0"))

    def noted(prepared: Any, out: Path, **more: Any) -> Path:
        trained.append(out.parent.name)
        other.close()
        return usual(prepared, out, **more)

    monkeypatch.setattr(run, "train", noted)
    result = grid(*asked)
    assert result.exit_code == 0, result.output
    assert trained == ["sft.second", "sft.first"]
    assert "sft.first, seed 0: another process has begun it" in result.output


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("--against sft.first", "no arm sft.first to compare with; there are base, sft"),
        ("--fit-on dev", "no evaluation set dev to fit on; there is shifted, out_of_fold"),
        ("--set data.evaluate={} --fit-on out_of_fold", "no evaluation set is left to be measured"),
    ],
)
def test_what_would_stop_the_report_is_refused_before_anything_runs(folder: Path, tmp_path: Path, asked: str, why: str):
    result = grid(folder / "grid.yaml", "--out", tmp_path, *asked.split())
    assert result.exit_code == 1
    assert why in result.output
    assert not list(tmp_path.iterdir())


def test_cells_with_other_sets_are_not_one_grid(folder: Path, tmp_path: Path):
    (tmp_path / "grid.yaml").write_text(GRID + "    none: {data.folds: null, data.fold: 0}\n")
    result = grid(tmp_path / "grid.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "base-1 on shifted, out_of_fold, and base-3 on shifted; choose --cells" in result.output


def test_parts_of_a_grid_share_what_training_starts_from(tmp_path: Path):
    models = "  model:\n    small: {model.path: small}\n    large: {model.path: large}\n"
    (tmp_path / "grid.yaml").write_text(GRID.replace("axes:\n", "axes:\n" + models) + "    again: {data.fold: 0}\n")
    file = load_recipes(tmp_path / "grid.yaml")

    def bases(*patterns: str) -> dict[str, tuple[str, str]]:
        cells = [cell for cell in cells_of(file, patterns, 1) if not cell.trains]
        return {cell.recipe.name: (cell.arm, run.recipe_sha256(cell.recipe)) for cell in cells}

    whole = bases()
    assert {name: arm for name, (arm, _) in whole.items()} == {
        "base-1": "base 1",
        "base-2": "base 1",
        "base-3": "base 2",
        "base-4": "base 2",
    }
    large = bases("large.*")
    assert {name: arm for name, (arm, _) in large.items()} == {"base-3": "base", "base-4": "base"}
    assert bases("large.sft.again")["base-3"][1] == large["base-3"][1] == whole["base-3"][1]


def test_an_arm_with_folds_still_to_run_is_left_out(folder: Path):
    cells = cells_of(load_recipes(folder / "grid.yaml"), (), 2)
    one = readings(np.random.default_rng(0), np.array([0, 1, 2]), 1.0)
    found = collect(
        cells, lambda cell: {"dev": one} if not cell.trains or (cell.seed, cell.recipe.data.fold) < (1, 1) else None
    )
    assert {arm: len(seeds) for arm, seeds in found.items()} == {"base": 1, "sft": 1}
    found = collect(cells, lambda cell: {"dev": one} if cell.recipe.data.fold == 0 or not cell.trains else None)
    assert list(found) == ["base"]


def readings(rng: np.random.Generator, gold: np.ndarray, sharpness: float) -> Readings:
    noise = rng.normal(size=(len(gold), 3))
    logits = sharpness * (np.eye(3)[gold] + 0.5 * noise)
    p = np.exp(logits)
    return ordered(np.arange(len(gold)).astype(str), 0.9 * p / p.sum(axis=1, keepdims=True), gold)


def test_models_are_read_in_float32_whatever_they_are_trained_in(folder: Path):
    read = {}
    for dtype in ("float32", "bfloat16"):
        wanted = (f"model.dtype={dtype}", "model.adapter={r: 2, alpha: 4, targets: [q_proj]}")
        recipe = load_recipes(folder / "grid.yaml", wanted).cells["sft.first"]
        prepared = run.prepare(recipe, folder)
        read[dtype] = read_sets(prepared, load_model(prepared, None))["shifted"].raw
    np.testing.assert_array_equal(read["bfloat16"], read["float32"])


def test_kl_and_total_variation_to_shares_are_those_computed_by_hand():
    shares = np.array([[0, 2 / 3, 1 / 3], [1, 0, 0]])
    raw = np.array([[0.1, 0.25, 0.15], [0.0, 0.5, 0.0]])
    scores = row_scores(Readings(np.array(["a", "b"]), raw, np.array([1, 0]), shares))
    # Of p = 0.2, 0.5, 0.3; and of a model that leaves the right option nothing, which costs as much as in NLL.
    assert scores["kl"] == pytest.approx([2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(10 / 9), scores["nll"][1]])
    assert scores["tv"] == pytest.approx([0.2, 1])
    assert scores["nll"][1] > 30


def test_shares_stay_with_their_rows_when_kept_and_when_folds_are_joined(tmp_path: Path):
    gold = np.array([0, 1, 2])
    shares = np.array([[0.8, 0.1, 0.1], [0, 1, 0], [0, 0, 1.0]])
    first = ordered(np.array(["c", "a", "e"]), shares / 2, gold, shares)
    second = ordered(np.array(["d", "b", "a"]), shares / 2, gold, shares)
    bare = ordered(np.array(["g", "h", "f"]), shares / 2, gold)
    save_readings(tmp_path / "readings.npz", {"one": first, "two": second, "bare": bare}, made_from="x")
    sets, _ = load_readings(tmp_path / "readings.npz")
    assert sets["bare"].shares is None
    joined = sets["one"].joined([sets["two"]])
    assert "".join(joined.hashes) == "abcde"
    assert np.array_equal(joined.shares, 2 * joined.raw)
    assert np.array_equal(joined.rows(joined.gold == 0).shares, [[0.8, 0.1, 0.1]] * 2)
    # A figure of some rows is none of the set.
    assert sets["one"].joined([sets["bare"]]).shares is None


def test_kl_to_shares_is_compared_before_and_behind_every_calibrator():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 600)
    gold = np.array([rng.choice(3, p=row) for row in shares])
    names = np.arange(len(gold)).astype(str)
    arms = {
        name: [{"test": ordered(names, shares**power / (shares**power).sum(axis=1, keepdims=True), gold, shares)}]
        for name, power in (("sharp", 3.0), ("fair", 1.0))
    }
    rows = {(r.arm, r.post_hoc): r for r in compare(arms, reference="sharp", fit_on=None)}
    assert rows["fair", "as it is"].figures.kl == pytest.approx(0, abs=1e-9)
    assert rows["fair", "as it is"].against["kl"].upper < 0
    sharp = rows["sharp", "as it is"].figures.kl
    assert {post_hoc for arm, post_hoc in rows if arm == "sharp"} == {"as it is", "temperature", "Platt", "isotonic"}
    for post_hoc in ("temperature", "Platt", "isotonic"):
        mended = rows["sharp", post_hoc]
        assert mended.against["kl"].value == pytest.approx(mended.figures.kl - sharp)
        assert mended.against["kl"].upper < 0


def test_calibrators_mend_what_is_only_too_sharp_and_never_see_the_rows_they_are_measured_on():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, 400)
    arms = {
        name: [{"dev": readings(rng, gold, s), "test": readings(rng, gold, s)} for _ in range(3)]
        for name, s in (("sharp", 20.0), ("fair", 4.0))
    }
    for fit_on in ("dev", None):
        rows = {
            (r.arm, r.post_hoc): r for r in compare(arms, reference="sharp", fit_on=fit_on) if r.evaluated_on == "test"
        }
        sharp, fair = rows["sharp", "as it is"], rows["fair", "as it is"]
        assert fair.against["nll"].upper < 0
        assert rows["sharp", "temperature"].figures.nll < sharp.figures.nll - 0.1
        assert rows["sharp", "temperature"].figures.accuracy == sharp.figures.accuracy
        # One in ten is no label at all: the raw confidence is lower than the normalised one.
        assert sharp.figures.label_mass == pytest.approx(0.9)
        assert sharp.figures.raw_ece != pytest.approx(sharp.figures.ece, abs=0.01)
    # Labels that are noise cannot be fitted on themselves.
    told = readings(rng, rng.integers(0, 3, 400), 4.0)
    shuffled = Readings(told.hashes, told.raw, rng.permutation(gold))
    found = {
        r.post_hoc: r.figures.nll for r in compare({"noise": [{"test": shuffled}]}, reference="noise", fit_on=None)
    }
    assert found["isotonic"] > np.log(3) - 0.02


def test_a_paired_interval_covers_and_counts_seeds_as_well_as_items():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        item, seed = rng.normal(size=(1, 100)), rng.normal(size=(6, 1))
        ours = 0.3 + item + 0.5 * seed + rng.normal(size=(6, 100))
        found = paired_difference(ours, np.zeros((6, 100)), seed=trial)
        covered += found.lower <= 0.3 <= found.upper
    assert covered >= 50
    # Without the seeds' part an interval over 600 values would be a tenth as wide as what seeds alone do.
    assert found.upper - found.lower > 2 * 1.96 * 0.5 / np.sqrt(6) * 0.7
