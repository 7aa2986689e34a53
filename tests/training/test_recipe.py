import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from demur.decision.errors import TaskFileError
from demur.training.recipe import Recipe
from demur.training.recipefile import load_recipes

PAPER = Path("recipes/paper/grid.yaml")
SMALL = """\
name: small
task: task.yaml
method: grpo
mode: reasoned
model: {path: model}
data:
  train: {path: train.jsonl}
optimiser:
  learning_rate: 1e-6
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def faults_of(path: Path, *changes: str) -> list[str]:
    with pytest.raises(TaskFileError) as caught:
        load_recipes(path, changes)
    return [str(fault).removeprefix(f"{path}:") for fault in caught.value.faults]


def test_a_recipe_is_read_with_its_defaults(tmp_path: Path):
    recipe = load_recipes(write(tmp_path, SMALL)).cells[""]
    assert recipe.optimiser.learning_rate == 1e-6
    assert recipe.grpo.loss_type == "dapo"
    assert recipe.accumulation == 4


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("name: small", "name: small\nnmae: x", "2: `nmae`: unknown key"),
        ("path: model", "path: model, adapter: {targets: [lm_head]}", "5: `model.adapter`: `lm_head`"),
        ("path: model", "path: model, dtype: bfloat16", "5: `model`: a step of AdamW is lost"),
        ("  learning_rate: 1e-6", "  learning_rate: 'fast'", "9: `optimiser.learning_rate`"),
        ("  learning_rate: 1e-6", "  prompts: 3\n  micro_batch: 16", "1: ``: 3 prompts of 8 rollouts"),
        ("method: grpo", "method: grpo\nmethod: sft", "4: `method` is given twice"),
        ("mode: reasoned", "mode: reasoned\nobjective: {lambda: 0.1}", "5: `objective`: a `lambda` above 0"),
        ("{path: train.jsonl}", "{path: train.jsonl, hub: x/y}", "7: `data.train`: give either"),
        ("{path: train.jsonl}", "{path: {{ train }}}", "7: a key must be a word"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, old: str, new: str, fault: str):
    assert any(found.startswith(fault) for found in faults_of(write(tmp_path, SMALL.replace(old, new))))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ("grpo.iterations=2 saves.every=3", "`saves.every` must be a multiple of `grpo.iterations`, 2"),
        (
            "mode=direct optimiser.prompts=8 grpo.beta=0.1 grpo.scale_rewards=batch rollout.temperature=0.5",
            "so grpo.beta, grpo.scale_rewards, rollout.temperature cannot be as given",
        ),
        ("method=own_correct mode=direct optimiser.prompts=8 objective.over=labels", "`objective.over` cannot be"),
        ("method=sft optimiser.prompts=8 data.validation=0.2 saves.best_by=validation", "among reasoned checkpoints"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(tmp_path: Path, changes: str, fault: str):
    (found,) = faults_of(write(tmp_path, SMALL), *changes.split())
    assert fault in found


def test_settings_that_do_something_in_direct_mode_are_taken(tmp_path: Path):
    changes = ["mode=direct", "optimiser.prompts=8", "grpo.scale_rewards=none", "rollout.group=4"]
    assert load_recipes(write(tmp_path, SMALL), changes).cells[""].grpo.scale_rewards == "none"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("base: 3\n", "1: `base` is a mapping"),
        ("base: [1]\naxes: {arm: {a: {}}}\n", "1: `base` is a mapping"),
        ("base:\n  name: x\naxes: 3\n", "3: `axes` is a mapping of axes"),
        ("base:\n  name: x\naxes:\n  arm:\n    a: {}\n    b: 3\n", "6: `b` is a mapping of what it changes"),
        ("base:\n  name: x\naxes:\n  arm:\n    8: {1: 2}\n", "5: `8` is a mapping of what it changes"),
        ("base:\n  name: x\naxes:\n  arm: {a: {}, b: {}}\n", "2: 2 cells are called 'x', and would share a folder"),
    ],
)
def test_a_fault_of_a_grid_is_named_with_its_line(tmp_path: Path, text: str, fault: str):
    assert any(found.startswith(fault) for found in faults_of(write(tmp_path, text)))


def test_set_changes_one_value_and_is_as_strict_as_the_file(tmp_path: Path):
    path = write(tmp_path, SMALL)
    changed = load_recipes(path, ["objective.target=gold", "objective.lambda=5e-4"]).cells[""]
    assert (changed.objective.target, changed.objective.lambda_) == ("gold", 5e-4)
    assert "unknown key" in faults_of(path, "optimiser.speed=3")[0]
    assert "--set wants key=value" in faults_of(path, "seed")[0]


def test_the_papers_grid_has_every_cell():
    cells = load_recipes(PAPER).cells
    assert len(cells) == 3 * 2 * 6 * 2
    for cell, recipe in cells.items():
        assert recipe.name == f"paper-{cell}"
        assert recipe.data.train.limit == 500
    # Whatever the machine, a step sees the same rollouts.
    four, one = (cells[f"qwen3-4b.commonsense.calibration.{machine}"] for machine in ("gpus-4", "gpu-80gb"))
    steps = {r.processes * r.optimiser.micro_batch * r.accumulation for r in (four, one)}
    assert steps == {four.optimiser.prompts * four.rollout.group}
    assert four.objective.lambda_ == 0.001
    assert not four.objective.policy_loss_on_decision


def test_every_value_of_the_papers_grid_says_whose_it_is():
    for number, line in enumerate(PAPER.read_text().splitlines(), 1):
        value = re.match(r"\s+[\w.-]+: (?!\{\})[^\s#]", line)
        if value and not line.strip().startswith(("name:", "#")):
            assert re.search(r"# (paper|assumed)\b", line), f"line {number} is not marked: {line}"


def test_every_default_that_changes_a_result_is_pinned_in_the_papers_grid():
    base = yaml.safe_load(PAPER.read_text())["base"]
    free = {"revision", "steps", "target", "advantage", "brier", "validation", "folds", "fold", "best_by", "certify"}

    def missing(section: dict[str, Any], fields: dict[str, Any]) -> set[str]:
        return {(field.alias or name) for name, field in fields.items()} - section.keys() - free

    assert missing(base, Recipe.model_fields) == set()
    for name in ("model", "data", "rollout", "objective", "grpo", "optimiser", "saves", "log"):
        kind = Recipe.model_fields[name].annotation
        assert missing(base[name], kind.model_fields) == set(), name


def test_the_schema_accepts_what_the_reader_accepts_and_refuses_what_it_refuses(tmp_path: Path):
    schema = Recipe.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for recipe in load_recipes(PAPER).cells.values():
        validator.validate(recipe.model_dump(mode="json", by_alias=True))
    recipe = load_recipes(write(tmp_path, SMALL)).cells[""].model_dump(mode="json", by_alias=True)
    assert not validator.is_valid(recipe | {"speed": 3})
    assert not validator.is_valid(recipe | {"method": "dpo"})
