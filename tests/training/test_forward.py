"""Direct training and SFT by the trainer that recipes use, on a tiny model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from demur.training.batches import last_logits
from demur.training.checkpoints import best, complete
from demur.training.direct import DirectSettings, DirectTrainer, PromptBatch
from demur.training.errors import NotFinite, OutOfMemory, TrainingError
from demur.training.forward import ForwardTrainer, collate, forward_arguments
from demur.training.objectives import Objective
from tests.training import tiny

SFT = Objective(policy_weight=0, target="gold", calibration_weight=1.0)
WRITTEN = (tiny.WORDS.index("w3"), tiny.WORDS.index("w9"))


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer(out: Path, rows: Any, objective: Objective = SFT, **more: Any) -> ForwardTrainer:
    changes = {name: more.pop(name) for name in ("optimiser", "saves") if name in more}
    return ForwardTrainer(
        model=tiny.model(),
        args=forward_arguments(tiny.recipe(mode="direct", **changes), out, use_cpu=True, disable_tqdm=True),
        train_dataset=rows,
        pad_id=0,
        objective=objective,
        **more,
    )


def direct(count: int = 24) -> Any:
    return [replace(row, after_thought=()) for row in tiny.examples(count)]


@pytest.mark.parametrize(
    "objective", [SFT, Objective(advantage="group_exact", target="others", calibration_weight=0.5, brier_weight=0.2)]
)
def test_a_step_is_the_plain_loops(tmp_path: Path, objective: Objective):
    """One step of four prompts in two parts: the same weights as the loop that the synthetic benchmark uses."""
    # With a large epsilon AdamW's step is smooth in the gradient; else rounding turns signs where it is nearly zero.
    step = {"steps": 1, "schedule": "constant", "epsilon": 1.0}
    ours = trainer(tmp_path, rows := direct(4), objective, optimiser=step)
    ours.train()
    inputs = collate(rows, pad_id=0, learns_prefix=False)
    batch = PromptBatch(inputs["input_ids"], inputs["attention_mask"], inputs["label_ids"], inputs["gold"])
    plain = DirectTrainer(tiny.model(), objective, DirectSettings(steps=1, learning_rate=1e-2, warmup=1), [])
    plain.optimizer.param_groups[0]["eps"] = 1.0
    plain.take(batch)
    start = tiny.model().state_dict()
    assert any((value - start[name]).abs().max() > 1e-4 for name, value in plain.model.state_dict().items())
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, msg=name, rtol=0, atol=1e-6)


def test_micro_batches_change_no_step_whatever_is_left_of_an_epoch(tmp_path: Path):
    """Two epochs of 27 rows, 8 a step: three rows of each are left out."""
    found = []
    for size in (8, 2):
        optimiser = {"epochs": 2.0, "steps": None, "prompts": 8, "micro_batch": size, "epsilon": 1.0}
        run = trainer(tmp_path / str(size), direct(27), optimiser=optimiser)
        run.train()
        assert run.state.global_step == 6
        found.append(run.model.state_dict())
    assert (found[0]["lm_head.weight"] - tiny.model().lm_head.weight).abs().max() > 1e-4
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name, rtol=0, atol=1e-6)
    with pytest.raises(TrainingError, match="7 training rows are less than the 8 of one step"):
        trainer(tmp_path, direct(7), optimiser={"prompts": 8})


def test_training_is_logged_and_the_best_checkpoint_stays(tmp_path: Path):
    rows = direct()
    run = trainer(
        tmp_path,
        rows,
        Objective(target="paper", calibration_weight=0.5, group=4),
        optimiser={"steps": 8},
        saves={"every": 1, "keep": 1},
        keep=1,
        best_by="dev",
        evaluate={"dev": tiny.examples(40)[24:]},
    )
    run.train()
    line = run.state.log_history[0]
    parts = {"loss/policy", "loss/calibration", "reward", "lambda_rel", "rollouts/unreadable", "rollouts/equal_groups"}
    figures = {"accuracy_argmax", "ece", "brier", "nll", "entropy", "confidence", "label_mass"}
    assert parts | {f"decision/{name}" for name in figures} <= set(line)
    nll = {i: entry["eval/dev_nll"] for i, entry in enumerate(e for e in run.state.log_history if "eval/dev_nll" in e)}
    assert len(nll) == 8
    chosen = min(nll, key=lambda i: nll[i]) + 1
    assert best(tmp_path, "dev").name == f"checkpoint-{chosen}"
    assert {path.name for path in complete(tmp_path)} == {f"checkpoint-{chosen}", "checkpoint-8"}


@pytest.mark.parametrize("thought", [(), WRITTEN], ids=["direct", "reasoned"])
def test_what_rows_share_is_computed_once_and_learned_as_before(thought: tuple[int, ...]):
    """Logits and gradients of rows with a common beginning, computed once or in every row."""
    examples = [replace(row, prompt=(9, 8, 7, 9, *row.prompt), thought=thought) for row in tiny.examples(4)]
    found = []
    for share in (False, True):
        inputs = collate(examples, pad_id=0, learns_prefix=False, share=share)
        assert inputs["shared"].shape[1] == (4 if share else 0)
        model = tiny.model().double()
        logits = last_logits(model, inputs, inputs["targets"].shape[1] + 1)
        logits.logsumexp(-1).sum().backward()
        found.append([logits.detach(), *(value.grad for value in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("learns_prefix", [False, True], ids=["forced", "free"])
def test_sft_on_a_thought_and_its_decision_is_their_log_likelihood(tmp_path: Path, learns_prefix: bool):
    examples = tiny.examples(2)
    examples[0] = replace(examples[0], thought=WRITTEN)
    examples[1] = replace(examples[1], thought=WRITTEN[:1])
    run = trainer(tmp_path, examples, learns_prefix=learns_prefix, optimiser={"prompts": 2})
    inputs = collate(examples, pad_id=0, learns_prefix=learns_prefix)
    got = run.compute_loss(run.model, inputs)
    expected = torch.tensor(0.0)
    for example in examples:
        ids = [*example.prompt, *example.thought, *example.after_thought]
        logprobs = log_softmax(run.model(input_ids=torch.tensor([ids])).logits[0], -1)
        learned = [*example.thought, *example.after_thought] if learns_prefix else [*example.thought, 2]
        for place, token in enumerate(learned, len(example.prompt) - 1):
            expected = expected - logprobs[place, token]
        expected = expected - logprobs[-1, example.label_ids[example.gold]]
    torch.testing.assert_close(got, expected / 2, rtol=1e-4, atol=1e-4)


def test_own_correct_decisions_are_those_of_the_model_before(tmp_path: Path):
    run = trainer(tmp_path, rows := direct(8), own_correct=True, optimiser={"steps": 2})
    before = [value.clone() for value in run.frozen.parameters()]
    run.train()
    assert all(torch.equal(a, b) for a, b in zip(before, run.frozen.parameters(), strict=True))
    inputs = collate(rows, pad_id=0, learns_prefix=False)
    assert not torch.equal(last_logits(run.frozen, inputs), last_logits(run.model, inputs))


def test_a_loss_that_is_no_number_stops_the_run_with_its_batch_saved(tmp_path: Path):
    run = trainer(tmp_path, direct(8))
    with torch.no_grad():
        run.model.lm_head.weight[7] = float("nan")
    with pytest.raises(NotFinite, match="at step 0"):
        run.train()
    assert torch.load(tmp_path / "failed_batch.pt")["gold"].shape == (2,)


def test_rows_that_do_not_fit_when_they_are_measured_name_a_smaller_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = trainer(tmp_path, direct(4), evaluate={"dev": direct(4)}, optimiser={"steps": 1}, saves={"every": 1})

    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr("demur.training.forward.label_logprobs", full)
    with pytest.raises(OutOfMemory, match="micro_batch=1"):
        run.train()
