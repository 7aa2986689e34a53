"""Two processes on CPUs with gloo, started as torchrun starts them, against one that meets the same rollouts."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import TrainerCallback

from demur.server.cli import main
from tests.models import build_model

pytestmark = pytest.mark.process

TASK = """\
name: sky
question: Which colour?
options: [red, green, blue]
readout: letter
"""
#: With a large epsilon AdamW's step is smooth in the gradient; else rounding turns signs where it is nearly zero.
RECIPE = """\
name: sky
task: task.yaml
method: grpo
mode: reasoned
model: {path: model}
data: {train: {path: train.jsonl}}
rollout: {group: 2, max_tokens: 4}
optimiser: {learning_rate: 0.1, epsilon: 1.0, steps: 3, prompts: 4, micro_batch: 4, gradient_checkpointing: false}
log: {to: []}
"""
ADAPTER = "model.adapter={r: 2, alpha: 4, dropout: 0.0, targets: [q_proj, v_proj]}"
CALIBRATED = "objective={target: paper, lambda: 0.5, policy_loss_on_decision: false}"
KINDS: dict[str, tuple[str, ...]] = {
    "sft": ("method=sft", "mode=direct"),
    "exact": (
        "mode=direct",
        "objective={advantage: group_exact, target: others, lambda: 0.5, brier: 0.2, over: labels}",
        ADAPTER,
    ),
    "own": ("method=own_correct", "rollout.kind=forced", ADAPTER),
    "free": ("objective={target: paper, lambda: 0.5}",),
    "forced": (
        "rollout.kind=forced",
        "rollout.top_k=1",
        "optimiser.gradient_checkpointing=true",
        CALIBRATED,
        ADAPTER,
    ),
}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with everything that it names."""
    folder = tmp_path_factory.mktemp("processes")
    build_model("llama", folder / "model")
    (folder / "task.yaml").write_text(TASK)
    rows = [{"input": f"thing {i}", "label": ("red", "green", "blue")[i % 3]} for i in range(16)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def together(count: int, job: Callable[..., None], *given: Any, environment: dict[str, str] | None = None) -> list[int]:
    """Runs `job` in that many processes, numbered and connected as torchrun does; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["demur.training.reasoned", "demur.training.run", "peft"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | (environment or {})
    children = []
    for number in range(count):
        place = shared | {"RANK": number, "LOCAL_RANK": number} if count > 1 else {}
        named = {name: str(value) for name, value in place.items()}
        children.append(context.Process(target=numbered, args=(named, job, given)))
        children[-1].start()
    for child in children:
        child.join(120)
        child.kill()
        child.join()
    return [child.exitcode for child in children]


def numbered(environment: dict[str, str], job: Callable[..., None], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= environment
    job(*given)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train(recipe: Path, runs: dict[Path, tuple[str, ...]], same: bool = True, die_at: int | None = None) -> None:
    """Runs as the command line starts them, one after another, each with its changes of the recipe.

    `same`: with rollouts that do not depend on the process. `die_at`: the step at whose beginning the process ends.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    from demur.training import run
    from demur.training.reasoned import ReasonedTrainer
    from demur.training.recipefile import load_recipes

    plain_state, plain_turn, plain_trainer = (
        AcceleratorState.__init__,
        ReasonedTrainer._generate_single_turn,
        run.trainer_of,
    )

    def sharded_on_cpus(state: Any, *given: Any, fsdp_plugin: Any = None, **more: Any) -> None:
        plain_state(state, *given, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None:
            state.fsdp_plugin = fsdp_plugin
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def written(trainer: Any, *given: Any, **more: Any) -> tuple[Any, None]:
        if trainer.plan.forced:
            return plain_turn(trainer, *given, **more)
        completions = []
        for place, row in enumerate(trainer._rows):
            draw = Random(str((row["prompt"], place % trainer.num_generations)))
            thought = draw.choices(range(300, 1000), k=draw.randint(1, 4))
            completions.append([*thought, *row["after_thought"], *draw.choice(row["sequences"]), 2])
        return completions, None

    def mortal(*given: Any, **more: Any) -> Any:
        trainer = plain_trainer(*given, **more)
        trainer.add_callback(Death(die_at))
        return trainer

    # Without a GPU accelerate takes FSDP for DDP, and says nothing.
    AcceleratorState.__init__ = sharded_on_cpus
    run.trainer_of = mortal
    if same:
        ReasonedTrainer._generate_single_turn = written
        # A thought ends where an end is probable enough.
        torch.rand = lambda *size, **_: torch.full(size, 0.0005)
    for out, changes in runs.items():
        found = load_recipes(recipe, changes)
        run.train(run.prepare(found.cells[""], found.folder), out, resume=True, use_cpu=True, disable_tqdm=True)


class Death(TrainerCallback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def weights(out: Path) -> dict[str, torch.Tensor]:
    (found,) = (out / "model").glob("*.safetensors")
    return load_file(found)


def logged(out: Path) -> list[dict[str, float]]:
    lines = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    timed = ("runtime", "per_second", "flos", "step_time")
    return [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines]


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """Every kind of run by one process, by two, and by two that share the weights."""
    parted = ("processes=2", "optimiser.micro_batch=2")
    ways: dict[str, tuple[int, dict[str, str]]] = {"one": (1, {}), "two": (2, {}), "shards": (2, FSDP)}
    for way, (count, environment) in ways.items():
        asked = {folder / way / kind: (*changes, *parted[: 2 * count - 2]) for kind, changes in KINDS.items()}
        assert together(count, train, folder / "recipe.yaml", asked, environment=environment) == [0] * count
    return folder


@pytest.mark.parametrize("way", ["two", "shards"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(runs: Path, way: str, kind: str):
    """The same weights on the same rollouts, and the same figures: those of all processes."""
    one, two = runs / "one" / kind, runs / way / kind
    expected, found = weights(one), weights(two)
    start = {} if "lora" in "".join(expected) else load_file(runs / "model" / "model.safetensors")
    moved = [(value - start.get(name, 0)).abs().max() for name, value in expected.items() if "lora_A" not in name]
    assert max(moved) > 1e-3
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for line, again in zip(logged(one), logged(two), strict=True):
        for name, value in line.items():
            assert again[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert sum("decision/nll" in line for line in logged(one)) == 3
    assert (two / "checkpoint-3" / "pytorch_model_fsdp_0").is_dir() == (way == "shards")


DROPOUT = ADAPTER.replace("0.0", "0.2")
LONGER = (
    "processes=2",
    "optimiser.micro_batch=2",
    "optimiser.steps=6",
    "optimiser.learning_rate=1e-3",
    "saves.every=2",
)


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        (("rollout.kind=forced", CALIBRATED, DROPOUT), {}),
        (("mode=direct", "objective={target: paper, lambda: 0.5}"), FSDP),
    ],
    ids=["reasoned", "sharded"],
)
def test_a_run_that_stopped_goes_on_exactly(
    folder: Path, tmp_path: Path, changes: tuple[str, ...], environment: dict[str, str]
):
    """Decisions, thoughts and dropout are drawn at random in each process, so each goes on with its own numbers."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def ran(out: Path, *die_at: int) -> list[int]:
        asked = {out: (*changes, *LONGER)}
        return together(2, train, folder / "recipe.yaml", asked, False, *die_at, environment=environment)

    assert ran(whole) == [0, 0]
    codes = ran(broken, 5)
    assert -signal.SIGKILL in codes
    assert 0 not in codes
    assert not (broken / "model").exists()
    assert ran(broken) == [0, 0]
    found = weights(broken)
    for name, value in weights(whole).items():
        assert torch.equal(value, found[name]), name


def draw(recipe: Path, out: Path) -> None:
    """Leaves what a process would draw next, once it has its trainer."""
    from demur.training import processes, run
    from demur.training.recipefile import load_recipes

    found = load_recipes(recipe, ("mode=direct", "processes=2", "optimiser.micro_batch=2"))
    run.trainer_of(run.prepare(found.cells[""], found.folder), out, use_cpu=True)
    torch.save(torch.rand(4), out / f"{processes.number()}.pt")


def test_each_process_draws_decisions_and_dropout_of_its_own(folder: Path, tmp_path: Path):
    assert together(2, draw, folder / "recipe.yaml", tmp_path) == [0, 0]
    assert not torch.equal(torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt"))


def shard_the_head_alone(recipe: Path, out: Path) -> None:
    from accelerate.utils import fsdp_utils

    fsdp_utils._find_final_norm = lambda _: None
    with pytest.raises(ValueError, match="a trained head that FSDP shards by itself"):
        train(recipe, {out: (*KINDS["free"], "processes=2", "optimiser.micro_batch=2")})


def test_a_head_whose_gradients_would_be_wrong_is_refused(folder: Path, tmp_path: Path):
    asked = (shard_the_head_alone, folder / "recipe.yaml", tmp_path)
    assert together(2, *asked, environment=FSDP) == [0, 0]


def test_the_command_line_under_torchrun_writes_and_says_everything_once(folder: Path, tmp_path: Path):
    programs = Path(sys.executable).parent
    changes = ("method=sft", "mode=direct", ADAPTER, "processes=2", "optimiser.micro_batch=2")
    words = [word for change in changes for word in ("--set", change)]
    command = [programs / "torchrun", "--nproc-per-node", "2", programs / "demur", "train", folder / "recipe.yaml"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "out", "--merge", *words],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: ") == done.stdout.count("whole model: ") == 1
    assert len(re.findall("'decision/nll'", done.stdout)) == 3
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()
    states = (tmp_path / "out" / "checkpoint-3").glob("rng_state*")
    assert {path.name for path in states} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.parametrize(
    ("wanted", "found", "gpus", "why"),
    [
        (2, 1, 0, "start 2, with `torchrun --nproc-per-node 2` or"),
        (1, 2, 0, "1 processes and 2 were started"),
        (1, 1, 4, "4 are visible: set CUDA_VISIBLE_DEVICES to one"),
    ],
)
def test_another_number_of_processes_than_the_recipes_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, found: int, gpus: int, why: str
):
    monkeypatch.setenv("WORLD_SIZE", str(found))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    asked = ["train", str(folder / "recipe.yaml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*asked, "--set", f"processes={wanted}", "--set", "optimiser.micro_batch=2"])
    assert result.exit_code == 1
    assert why in result.output
    assert not (tmp_path / "out").exists()
