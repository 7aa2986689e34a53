import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner, Result
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from demur.decision.rowhash import TRAINING_ROWS, training_rows
from demur.server.cli import main
from demur.server.cli_calibrate import calibrate
from demur.training import own_rollouts, run
from demur.training.lock import held
from demur.training.own_rollouts import ROLLOUTS
from tests.models import build_model

TASK = """\
name: sky
question: Which colour?
options: [red, green, blue]
readout: letter
"""
RECIPE = """\
name: sky
task: task.yaml
method: grpo
mode: reasoned
model: {path: model}
data:
  train: {path: train.jsonl}
  evaluate: {dev: {path: dev.jsonl}}
rollout: {kind: forced, group: 2, max_tokens: 3}
objective: {target: gold, lambda: 1.0, policy_loss_on_decision: false}
optimiser: {learning_rate: 1e-3, steps: 2, prompts: 2, micro_batch: 4, gradient_checkpointing: false}
log: {to: []}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with everything that it names."""
    folder = tmp_path_factory.mktemp("training")
    build_model("llama", folder / "model")
    (folder / "task.yaml").write_text(TASK)
    for name, start in (("train", 0), ("dev", 50)):
        rows = [{"input": f"thing {i}", "label": ("red", "green", "blue")[i % 3]} for i in range(start, start + 8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def demur(*arguments: str | Path) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return CliRunner().invoke(main, ["train", *map(str, arguments)])
    finally:
        torch.set_num_threads(threads)


def test_a_dry_run_checks_everything_and_writes_nothing(folder: Path, tmp_path: Path):
    result = demur(folder / "recipe.yaml", "--dry-run", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "rows: train 8, dev 8; 0 dropped" in result.output
    assert re.search(r"first batch: cross-entropy \d\S+ of the labels behind empty thoughts, no roll", result.output)
    assert "thoughts have at most 3 tokens here, and 256 where the task is served" in result.output
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_run_leaves_a_model_that_knows_its_rows_and_where_it_came_from(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = demur(folder / "recipe.yaml", "--out", out)
    assert result.exit_code == 0, result.output
    before, after = (load_file(path / "model.safetensors") for path in (folder / "model", out / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert len(training_rows(out / "model")) == 8
    made_from: dict[str, Any] = json.loads((out / "model" / "provenance.json").read_text())
    assert made_from["recipe"]["objective"]["lambda"] == 1.0
    assert str(tmp_path) not in json.dumps(made_from)
    again = demur(folder / "recipe.yaml", "--out", out)
    assert again.exit_code == 1
    assert "--resume" in again.output
    other = demur(folder / "recipe.yaml", "--out", out, "--resume", "--set", "seed=3")
    assert "the recipe of" in other.output
    assert other.exit_code == 1
    # What is told to change when memory is full, and what is not of the training, may change.
    changes = sets("optimiser.micro_batch=2", "saves.keep=1", "log={every: 2, to: []}", "certify.data=certify.jsonl")
    (folder / "certify.jsonl").write_text('{"input": "another thing", "label": "red"}\n')
    for _ in range(2):
        gone_on = demur(folder / "recipe.yaml", "--out", out, "--resume", *changes)
        assert gone_on.exit_code == 0, gone_on.output
    assert json.loads((out / "provenance.json").read_text())["recipe"]["optimiser"]["micro_batch"] == 2


def test_a_second_command_takes_nothing_from_a_run_that_still_writes(folder: Path, tmp_path: Path):
    for name in ("checkpoint-1", "checkpoint.writing/checkpoint-2"):
        (tmp_path / name).mkdir(parents=True)
    refused = demur(folder / "recipe.yaml", "--out", tmp_path)
    assert "holds a run already" in refused.output
    with held(tmp_path):
        refused = demur(folder / "recipe.yaml", "--out", tmp_path, "--resume")
    assert refused.exit_code == 1
    assert f"another process is running in {tmp_path}" in refused.output
    assert (tmp_path / "checkpoint.writing" / "checkpoint-2").is_dir()


def test_no_model_is_there_before_the_hashes_of_its_rows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that stops while it writes the trained model, and goes on."""
    asked = (folder / "recipe.yaml", "--out", tmp_path, *DIRECT)

    def full(_: Path) -> frozenset[str]:
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(run, "training_rows", full)
        assert "no space left" in demur(*asked).output
    assert not (tmp_path / "model").exists()
    result = demur(*asked, "--resume")
    assert result.exit_code == 0, result.output
    assert len(training_rows(tmp_path / "model")) == 8
    assert not list(tmp_path.glob("*.writing"))
    trained = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in trained.items())


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


POLICY = "objective={target: gold, policy_loss_on_decision: true}"
DIRECT = sets("mode=direct", "optimiser.micro_batch=2", POLICY)


CHOOSING = "mode=direct optimiser.micro_batch=2 saves.best_by=dev"


@pytest.mark.parametrize(
    "changes",
    [
        ("method=sft",),
        ("method=own_correct",),
        ("objective.advantage=group_exact", "objective.lambda=0.5", "objective.target_decision=argmax"),
        ("objective.policy_loss_on_decision=false", "objective.brier=1.0"),
    ],
)
def test_direct_mode_runs_with_every_kind_of_objective(folder: Path, tmp_path: Path, changes: tuple[str, ...]):
    asked = (folder / "recipe.yaml", "--out", tmp_path, *DIRECT, *sets(*changes))
    checked = demur(*asked, "--dry-run")
    assert checked.exit_code == 0, checked.output
    assert "a step: 2 prompts in 1 parts" in checked.output
    found = re.search(r"first batch: cross-entropy (\S+) of the labels behind the prompts; loss (\S+)", checked.output)
    assert found is not None
    # What SFT minimises is the cross-entropy; the others are not.
    assert (found[1] == found[2]) == (changes == ("method=sft",))
    result = demur(*asked, *sets("saves={every: 1, best_by: dev}"))
    assert result.exit_code == 0, result.output
    before, after = (load_file(path / "model.safetensors") for path in (folder / "model", tmp_path / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    chosen = json.loads((tmp_path / "model" / "provenance.json").read_text())["chosen"]
    assert chosen["step"] in (1, 2)
    assert chosen["evaluation"]["dev"]["nll"] > 0
    # A run that has ended is only looked at again.
    again = demur(*asked, *sets("saves={every: 1, best_by: dev}"), "--resume")
    assert again.exit_code == 0, again.output
    same = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in same.items())


def test_a_thought_is_learned_where_rows_have_one(folder: Path, tmp_path: Path):
    changes = ("method=sft", "optimiser.micro_batch=2", "objective.lambda=0.0", "rollout.max_tokens=30")
    asked = (folder / "recipe.yaml", "--out", tmp_path / "out", *sets(*changes))
    without = demur(*asked)
    assert without.exit_code == 1
    assert "train.jsonl:1: no `thought` to learn" in without.output
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    written = tmp_path / "written.jsonl"
    written.write_text("".join(json.dumps(row | {"thought": f"it looks {row['label']}"}) + "\n" for row in rows))
    checked = demur(*asked, "--dry-run", *sets(f"data.train.path={written}")).output
    found = re.search(r"first batch: cross-entropy (\S+) of the labels behind their thoughts; loss (\S+)", checked)
    assert found is not None
    assert float(found[2]) > 2 * float(found[1])
    result = demur(*asked, *sets(f"data.train.path={written}"))
    assert result.exit_code == 0, result.output
    assert "'loss/thought'" in result.output
    # Decisions behind no thought, or behind one that another wrote, are none that is served.
    assert not list(tmp_path.rglob("evaluation.json"))


def test_own_correct_rollouts_are_drawn_once_and_a_stopped_run_ends_in_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changes = ("method=own_correct", "objective.lambda=0.0", "optimiser.micro_batch=2", "saves={every: 1, keep: 2}")
    whole, early, late = (tmp_path / name for name in ("whole", "early", "late"))
    result = demur(folder / "recipe.yaml", "--out", whole, *sets(*changes))
    assert result.exit_code == 0, result.output
    assert re.search(r"own rollouts: \d+ of 16 decided right; \d of 8 rows have none", result.output)
    assert "'loss/thought'" in result.output
    # Rows that were left out for their label were learned from too: none may certify.
    assert len(training_rows(whole / "model")) == 8
    # Stopped before the first checkpoint, and between two of them.
    early.mkdir()
    shutil.copy(whole / ROLLOUTS, early)
    shutil.copytree(whole, late)
    for name in ("model", "checkpoint-2"):
        shutil.rmtree(late / name)
    monkeypatch.setattr(own_rollouts, "roll_out", lambda *_, **__: pytest.fail("drawn again"))
    expected = load_file(whole / "model" / "model.safetensors")
    for out in (early, late):
        result = demur(folder / "recipe.yaml", "--out", out, "--resume", *sets(*changes))
        assert result.exit_code == 0, result.output
        got = load_file(out / "model" / "model.safetensors")
        assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_an_adapter_is_trained_alone_and_merged_without_a_change_of_logits(folder: Path, tmp_path: Path):
    adapter = "model.adapter={r: 2, alpha: 4, dropout: 0.0, targets: [q_proj, v_proj]}"
    result = demur(folder / "recipe.yaml", "--out", tmp_path, "--merge", *DIRECT, *sets("method=sft", adapter))
    assert result.exit_code == 0, result.output
    ids = torch.arange(5, 25)[None]
    base, merged = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "model", tmp_path / "merged"))
    with torch.no_grad():
        before, whole = base(ids).logits, merged(ids).logits
        apart = PeftModel.from_pretrained(base, tmp_path / "model")(ids).logits
    torch.testing.assert_close(whole, apart, rtol=1e-4, atol=1e-4)
    assert (whole - before).abs().max() > 1e-3
    found = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert found
    assert all("lora" in name for name in found)
    assert any(value.abs().sum() > 0 for name, value in found.items() if "lora_B" in name)


def test_a_later_stage_in_bfloat16_merges_all_of_its_adapter_and_keeps_the_rows_of_the_first(
    folder: Path, tmp_path: Path
):
    first = tmp_path / "first"
    AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).save_pretrained(first)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / name, first)
    (first / TRAINING_ROWS).write_text("0a\n1b\n")
    model = f"model={{path: {first}, dtype: bfloat16, adapter: {{r: 2, alpha: 4, dropout: 0.0, targets: [q_proj]}}}}"
    result = demur(folder / "recipe.yaml", "--out", tmp_path, "--merge", *DIRECT, *sets("method=sft", model))
    assert result.exit_code == 0, result.output
    ids = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32)
    with torch.no_grad():
        before, whole = base(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        apart = PeftModel.from_pretrained(base, tmp_path / "model")(ids).logits
    assert (apart - before).abs().max() > 1e-3
    assert (whole - apart).abs().max() < 0.01 * (apart - before).abs().max()
    assert {"0a", "1b"} < training_rows(tmp_path / "model") == training_rows(tmp_path / "merged")
    assert len(training_rows(tmp_path / "model")) == 2 + 8


def test_upper_layers_alone_are_adapted(folder: Path, tmp_path: Path):
    adapter = "model.adapter={r: 2, alpha: 4, dropout: 0.0, targets: [q_proj], upper_layers: %d}"
    result = demur(folder / "recipe.yaml", "--out", tmp_path, *DIRECT, *sets("method=sft", adapter % 1))
    assert result.exit_code == 0, result.output
    last = json.loads((folder / "model" / "config.json").read_text())["num_hidden_layers"] - 1
    found = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert found
    assert all(f".layers.{last}." in name for name in found)
    too_many = demur(folder / "recipe.yaml", "--out", tmp_path / "2", *DIRECT, *sets("method=sft", adapter % 9))
    assert too_many.exit_code == 1
    assert "upper_layers is 9, and" in too_many.output
    elsewhere = "model.adapter.targets=[q_proj, c_attn]"
    none = demur(folder / "recipe.yaml", "--dry-run", *DIRECT, *sets("method=sft", adapter % 1, elsewhere))
    assert none.exit_code == 1
    assert "has no layer called c_attn" in none.output


@pytest.mark.parametrize(
    ("change", "status", "why"),
    [
        ("optimiser.speed=9", 2, "unknown key"),
        ("data.train.path=none.jsonl", 1, "none.jsonl: cannot be read"),
        ("data.evaluate.dev.path=train.jsonl", 1, "train.jsonl:1: also stands in an evaluation set"),
        ("method=own_correct optimiser.micro_batch=2 rollout.kind=free", 2, "needs `rollout.kind: forced`"),
        ("method=sft optimiser.micro_batch=2", 2, "a `lambda` or `brier` belongs to `grpo`"),
        ("optimiser.micro_batch=3", 2, "cannot share evenly"),
        ("certify.data=train.jsonl", 1, "train.jsonl:1: also stands in an evaluation set"),
        ("certify.data=dev.jsonl " + CHOOSING, 1, "dev.jsonl:1: also certifies, dev.jsonl:1"),
        ("saves.best_by=test", 2, "`best_by` names no evaluation set"),
        ("log.to=[wandb]", 1, "log.to: wandb is not installed; pip install wandb"),
        ("model.path=../nowhere/model", 1, "nowhere/model is no directory, and ../nowhere/model no name on the Hub"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, change: str, status: int, why: str
):
    result = demur(folder / "recipe.yaml", "--out", tmp_path / "out", *sets(*change.split()))
    assert result.exit_code == status
    assert why in result.output
    assert not (tmp_path / "out").exists()


def test_a_context_that_the_model_does_not_have_is_refused(folder: Path, tmp_path: Path):
    result = demur(folder / "recipe.yaml", "--out", tmp_path, "--dry-run", *sets("max_length=4097"))
    assert result.exit_code == 1
    assert "max_length is 4097, and the context of model is 4096" in result.output


def test_free_rollouts_need_an_answer_prefix_to_be_read_by(folder: Path, tmp_path: Path):
    (folder / "bare.yaml").write_text(TASK + 'layout: {answer_prefix: ""}\n')
    asked = (folder / "recipe.yaml", "--out", tmp_path, "--dry-run", "--set", "task=bare.yaml")
    refused = demur(*asked, "--set", "rollout.kind=free")
    assert refused.exit_code == 1
    assert "the task sky has an empty `answer_prefix`" in refused.output
    assert demur(*asked).exit_code == 0


def test_a_model_that_is_nowhere_is_asked_of_the_hub_and_then_refused_by_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def away(*_: Any, **__: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(run.AutoTokenizer, "from_pretrained", away)
    result = demur(folder / "recipe.yaml", "--out", tmp_path, *sets("model.path=no/where"))
    assert result.exit_code == 1
    assert f"{folder / 'no/where'} is no directory, and the Hub did not give no/where: no connection" in result.output


def test_a_grid_needs_a_cell_and_lists_them():
    grid = "recipes/paper/grid.yaml"
    listed = demur(grid, "--list").output.split()
    assert "qwen3-8b.moderation.grpo.gpu-80gb" in listed
    unknown = demur(grid, "--cell", "qwen3-9b")
    assert unknown.exit_code == 2
    assert "no cell 'qwen3-9b'" in unknown.output


def test_every_arm_of_the_paper_passes_a_dry_run_on_a_tiny_qwen3(tmp_path: Path):
    build_model("qwen3", tmp_path / "qwen3")
    options = ["bank", "library", "store", "mall", "park"]
    rows = {
        "commonsense": [{"question": f"Where is thing {i}?", "options": options, "label": "bank"} for i in range(12)],
        "moderation": [{"input": f"text {i}", "label": ("safe", "unsafe")[i % 2]} for i in range(12)],
    }
    for task, values in rows.items():
        paths = {name: tmp_path / f"{task}_{name}.jsonl" for name in ("train", "dev")}
        paths["train"].write_text("".join(json.dumps(row) + "\n" for row in values[:9]))
        paths["dev"].write_text("".join(json.dumps(row) + "\n" for row in values[9:]))
        for arm in ("sft", "grpo", "calibration"):
            result = demur(
                *("recipes/paper/grid.yaml", "--cell", f"qwen3-4b.{task}.{arm}.gpus-4", "--dry-run"),
                *("--set", f"model.path={tmp_path / 'qwen3'}", "--set", "model.dtype=float32"),
                *("--set", f"data.train={{path: {paths['train']}}}", "--out", tmp_path / "out"),
                *("--set", f"data.evaluate={{dev: {{path: {paths['dev']}}}}}"),
            )
            assert result.exit_code == 0, result.output
            assert "rows: train 9, dev 3; 0 dropped" in result.output


def test_the_schema_that_is_printed_describes_recipes():
    jsonschema.Draft202012Validator.check_schema(json.loads(demur("--schema").output))


def test_a_bundle_is_made_by_calibrating_the_merged_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The engine is left out: what `demur calibrate` is asked is what it takes."""
    asked: list[list[str]] = []
    monkeypatch.setattr(run.subprocess, "run", lambda words, **_: asked.append(words) or CompletedProcess(words, 0))
    (folder / "certifying.jsonl").write_text('{"input": "something else", "label": "red"}\n')
    adapter = "model.adapter={r: 2, alpha: 4, dropout: 0.0, targets: [q_proj]}"
    wanted = (folder / "recipe.yaml", "--out", tmp_path / "out", "--bundle", tmp_path / "bundle", *DIRECT)
    without = demur(*wanted, *sets("method=sft", adapter))
    assert without.exit_code == 2
    assert "give the recipe a `certify` section" in without.output
    certify = "certify={data: certifying.jsonl, alpha: 0.1, attempt: 2}"
    result = demur(*wanted, *sets("method=sft", adapter, certify))
    assert result.exit_code == 0, result.output
    (words,) = asked
    given = calibrate.make_context("calibrate", words[words.index("calibrate") + 1 :]).params
    assert (given["model"], given["out"]) == (str(tmp_path / "out" / "merged"), tmp_path / "bundle")
    assert (given["data"], given["alpha"], given["attempt"]) == (folder / "certifying.jsonl", 0.1, 2)
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()


@pytest.mark.process
@pytest.mark.parametrize("command", ["train", "grid", "diagnose"])
def test_without_the_extra_a_command_says_what_to_install(folder: Path, command: str):
    program = "import sys; sys.modules['torch'] = None; from demur.server.cli import main; main()"
    asked = [command, str(folder / "recipe.yaml"), *(["--on", "dev"] if command == "diagnose" else [])]
    done = subprocess.run([sys.executable, "-c", program, *asked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "demur: torch is missing: training needs pip install 'demur[train]'\n"


@pytest.mark.process
def test_help_names_the_commands_and_imports_nothing_slow():
    program = """
import sys
from demur.server.cli import main
main(["--help"], standalone_mode=False)
print({"torch", "transformers", "trl"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *told, imported = done.stdout.splitlines()
    assert {"train", "grid", "diagnose"} <= {line.split()[0] for line in told if line.strip()}
    assert imported == "set()"
