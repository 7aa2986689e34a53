"""A run that is killed and goes on ends in the weights of one that was not; each run is a process of its own."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from demur.training import checkpoints
from demur.training.checkpoints import clear, complete, newest
from demur.training.objectives import Objective
from tests.training import tiny

STEPS = 12  # two epochs of 24 prompts, 4 a step
#: Where a run dies: the step, and the callback's event in it. The save's is between writing and renaming.
EVENTS = ("on_step_begin", "on_substep_end", "on_step_end", "on_pre_optimizer_step", "on_log")


def run(out: Path, direct: bool, die_at: tuple[int, str] | None) -> None:
    """Trains from the newest checkpoint, kills itself at `die_at`, and writes the weights at the end."""
    torch.set_num_threads(1)
    # Decisions are sampled in both modes, so a run goes on only if random numbers do.
    objective = Objective(policy_weight=float(direct), target="paper", calibration_weight=0.5)
    make = tiny.direct_trainer if direct else tiny.trainer
    trainer = make(out, objective, rows=tiny.examples(24), optimiser={"steps": STEPS}, saves={"every": 2, "keep": 2})

    class Death(TrainerCallback):
        pass

    def die(_self, args, state, control, **kwargs):
        if die_at is not None and state.global_step == die_at[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    if die_at is not None and die_at[1] == "save":
        publish = checkpoints.publish

        def publish_or_die(written, folder, **more):
            if written.name == f"checkpoint-{die_at[0]}":
                os.kill(os.getpid(), signal.SIGKILL)
            return publish(written, folder, **more)

        checkpoints.publish = publish_or_die
    elif die_at is not None:
        setattr(Death, die_at[1], die)
        trainer.add_callback(Death())
    found = newest(out)
    clear(out)
    trainer.train(resume_from_checkpoint=None if found is None else str(found))
    torch.save(tiny.weights(trainer), out / "weights.pt")


@pytest.mark.process
@pytest.mark.parametrize("direct", [False, True], ids=["reasoned", "direct"])
def test_killed_at_random_moments_and_resumed_equals_never_killed(tmp_path: Path, direct: bool):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["demur.training.reasoned", "tests.training.tiny"])

    def child(out: Path, die_at: tuple[int, str] | None) -> int:
        process = context.Process(target=run, args=(out, direct, die_at))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    draw = random.Random(5)
    deaths = [(step, draw.choice(EVENTS)) for step in sorted(draw.sample(range(1, STEPS), 3))]
    deaths += [(8, "save"), (9, draw.choice(EVENTS))]  # a save; after the first epoch
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert child(whole, None) == 0
    for death in sorted(deaths):
        assert child(broken, death) == -signal.SIGKILL, death
    assert child(broken, None) == 0
    expected, got = (torch.load(out / "weights.pt") for out in (whole, broken))
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.parametrize("make", [tiny.trainer, tiny.direct_trainer], ids=["reasoned", "direct"])
def test_a_finished_run_that_is_resumed_takes_no_step(tmp_path: Path, make: Callable[..., Any]):
    """It ends within an epoch of six steps."""
    wanted = {"rows": tiny.examples(24), "optimiser": {"steps": 4, "schedule": "constant"}, "saves": {"every": 2}}
    run = make(tmp_path, Objective(target="paper", calibration_weight=0.5), **wanted)
    run.train()
    again = make(tmp_path, Objective(target="paper", calibration_weight=0.5), **wanted)
    again.train(resume_from_checkpoint=str(newest(tmp_path)))
    assert again.state.global_step == 4
    assert [path.name for path in complete(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    expected = tiny.weights(run)
    assert all(torch.equal(value, expected[name]) for name, value in tiny.weights(again).items())
