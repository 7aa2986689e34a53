from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from demur.training.errors import NotFinite, OutOfMemory
from demur.training.objectives import Objective
from demur.training.reasoned import UNREADABLE, RolloutPlan, decision_reward, trl_arguments
from demur.training.trl import GRPOTrainer
from tests.training import tiny

CALIBRATED = Objective(policy_weight=0.0, target="paper", calibration_weight=1.0)
FORCED = RolloutPlan(forced=True, budget=5, answer="Answer:")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stock(out: Path) -> GRPOTrainer:
    rows = [{"prompt": text} for text in tiny.texts(100)]
    columns = [{"gold": e.gold, "sequences": [list(s) for s in e.sequences]} for e in tiny.examples()]
    return GRPOTrainer(
        model=tiny.model(),
        processing_class=tiny.tokenizer(),
        reward_funcs=tiny.reward,
        args=trl_arguments(tiny.recipe(optimiser={"steps": 20}), out, use_cpu=True, disable_tqdm=True),
        train_dataset=Dataset.from_list([row | more for row, more in zip(rows, columns, strict=True)]),
    )


def test_without_a_calibration_term_it_is_trls_trainer_bit_for_bit(tmp_path: Path):
    def trained(trainer: Any) -> Any:
        # A trainer seeds everything when it is made, so each is made when the one before has ended.
        trainer.train()
        return trainer

    mine = trained(tiny.trainer(tmp_path / "c", optimiser={"steps": 20}))
    ours = tiny.weights(mine)
    control, again = (tiny.weights(trained(stock(tmp_path / name))) for name in "ab")
    start = tiny.weights(tiny.trainer(tmp_path / "d"))
    assert any(not torch.equal(control[name], start[name]) for name in start)
    for name, value in control.items():
        assert torch.equal(value, again[name]), f"TRL against itself: {name}"
        assert torch.equal(value, ours[name]), name
    assert any("decision/accuracy" in line for line in ours_log(mine))


def ours_log(trainer: Any) -> list[dict[str, float]]:
    return list(trainer.state.log_history)


def rollouts(trainer: Any, count: int = 8) -> dict[str, Any]:
    trainer.model.train()
    dataset = trainer.train_dataset
    rows = [dict(dataset[i // trainer.num_generations]) for i in range(count)]
    return dict(trainer._generate_and_score_completions(rows))


def test_decision_rows_are_the_models_own_distribution_at_temperature_one(tmp_path: Path):
    trainer = tiny.trainer(tmp_path, CALIBRATED, rollout={"temperature": 0.5})
    found = rollouts(trainer, 32)
    ids = torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)
    mask = torch.cat([found["prompt_mask"], found["completion_mask"]], dim=1)
    place = found["prompt_ids"].size(1) + found["decision_position"].clamp(min=0) - 1
    labels = ids.masked_fill(mask == 0, -100)
    got = trainer.model(
        input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, decision_rows=place
    ).decision_logits
    plain = trainer.model(input_ids=ids, attention_mask=mask).logits
    assert (found["decision_position"] != UNREADABLE).any()
    torch.testing.assert_close(got, plain[torch.arange(len(ids)), place])


def test_the_decision_alone_has_no_advantage_where_the_objective_says_so(tmp_path: Path):
    found = rollouts(tiny.trainer(tmp_path, CALIBRATED), 16)
    zeros = 0
    for row, place in enumerate(found["decision_position"].tolist()):
        advantages = found["advantages"][row]
        others = torch.cat([advantages[:place], advantages[place + 1 :]]) if place != UNREADABLE else advantages
        assert len(set(others.tolist())) == 1
        if place != UNREADABLE:
            assert advantages[place] == 0
            zeros += int(others[0] != 0)
    assert zeros > 0


def test_a_forced_rollout_is_what_the_server_reads(tmp_path: Path):
    rows = tiny.examples()
    trainer = tiny.trainer(tmp_path, CALIBRATED, FORCED, rows, decision_reward)
    found = rollouts(trainer, 32)
    lengths = set()
    for number in range(32):
        example = rows[number // 4]
        ids = found["completion_ids"][number][found["completion_mask"][number].bool()].tolist()
        mask = found["tool_mask"][number][: len(ids)].tolist()
        place = int(found["decision_position"][number])
        thought = place - len(example.after_thought)
        # The server appends the same ids to the thought that ended at its budget or marker.
        assert tuple(ids[thought:place]) == example.after_thought
        assert not set(ids[:thought]) & set(example.stop_ids)
        assert ids[place] == example.label_ids[int(found["decision"][number])]
        assert len(ids) == place + 1
        assert mask == [1] * thought + [0] * len(example.after_thought) + [1]
        lengths.add(thought)
    assert max(lengths) == FORCED.budget
    assert min(lengths) < FORCED.budget


@pytest.mark.parametrize("plan", [tiny.ANYWHERE, FORCED])
def test_micro_batches_do_not_change_the_gradient(tmp_path: Path, plan: RolloutPlan):
    ends = []
    for size in (16, 4):
        trainer = tiny.trainer(
            tmp_path / str(size), CALIBRATED, plan, None, decision_reward, optimiser={"micro_batch": size, "steps": 2}
        )
        trainer.train()
        ends.append(tiny.weights(trainer))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_calibration_term_moves_confidence_towards_its_target(tmp_path: Path):
    gold_only = Objective(policy_weight=0.0, target="gold", calibration_weight=1.0)
    trainer = tiny.trainer(tmp_path, gold_only, FORCED, tiny.examples(4), decision_reward, optimiser={"steps": 12})
    trainer.train()
    nll = [line["decision/nll"] for line in ours_log(trainer) if "decision/nll" in line]
    assert nll[-1] < 0.5 * nll[0]
    assert all(line["rollouts/unreadable"] == 0 for line in ours_log(trainer) if "rollouts/unreadable" in line)
    assert all("lambda_rel" in line for line in ours_log(trainer) if "loss" in line)


def test_a_loss_that_is_no_number_stops_the_run_with_its_batch_saved(tmp_path: Path):
    trainer = tiny.trainer(tmp_path, CALIBRATED, FORCED, None, decision_reward)
    usual = trainer._decision_term
    trainer._decision_term = lambda *given: usual(*given) * (float("nan") if trainer.state.global_step == 1 else 1)
    with pytest.raises(NotFinite, match="at step 1"):
        trainer.train()
    saved = torch.load(tmp_path / "failed_batch.pt")
    assert saved["completion_ids"].shape[0] == 8
    assert torch.equal(saved["gold"] >= 0, torch.ones(8, dtype=torch.bool))


CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), CPU_FULL])
def test_a_micro_batch_that_does_not_fit_names_a_smaller_one(tmp_path: Path, error: Exception):
    trainer = tiny.trainer(tmp_path, CALIBRATED, FORCED, None, decision_reward)

    def full(*_: Any) -> None:
        raise error

    trainer._decision_term = full
    with pytest.raises(OutOfMemory, match="micro_batch=4"):
        trainer.train()


@pytest.mark.parametrize("plan", [tiny.ANYWHERE, FORCED])
def test_rollouts_that_do_not_fit_are_not_blamed_on_the_micro_batch(tmp_path: Path, plan: RolloutPlan):
    trainer = tiny.trainer(tmp_path, CALIBRATED, plan, None, decision_reward)

    def full(**_: Any) -> None:
        raise CPU_FULL

    trainer.model.generate = full
    with pytest.raises(
        OutOfMemory, match=r"16 rollouts of \d tokens are generated at once .* smaller optimiser.prompts"
    ):
        trainer.train()
