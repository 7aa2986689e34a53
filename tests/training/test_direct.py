"""The direct trainer on tiny decoders with random weights."""

from copy import deepcopy
from itertools import repeat

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from demur.training.direct import (
    DirectSettings,
    DirectTrainer,
    OwnCorrectTrainer,
    PromptBatch,
    decision_logits,
    decision_probabilities,
)
from demur.training.direct_loss import direct_loss
from demur.training.errors import NotFinite, OutOfMemory
from demur.training.objectives import Objective

torch.set_num_threads(1)
LABELS = torch.tensor([2, 3, 4])
GOLD_ALONE = Objective(policy_weight=0, target="gold", calibration_weight=1.0)


def decoder(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).to(dtype)


def prompts(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 12, (n, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, :3] = 0
    ids[::2, :3] = 0
    return PromptBatch(ids, mask, LABELS, torch.randint(0, 3, (n,), generator=generator))


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def test_gold_alone_is_sft_on_the_decision_token():
    model, batch = decoder(), prompts()
    logits = decision_logits(model, batch)
    ours = gradients(model, direct_loss(GOLD_ALONE, logits, LABELS, batch.gold).total)
    full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, -1]
    sft = gradients(model, cross_entropy(full, LABELS[batch.gold]))
    for a, b in zip(ours, sft, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("over", ["vocabulary", "labels"])
def test_many_samples_come_to_the_exact_gradient(over):
    """The mean over 4,000 groups is the group-exact gradient, within five standard errors."""
    fields = {"target": "others", "calibration_weight": 0.7, "group": 4, "over": over}
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)).expand(4000, -1).clone().requires_grad_()
    gold = torch.ones(4000, dtype=torch.int64)
    generator = torch.Generator().manual_seed(2)
    exact, drawn = (
        4000 * torch.autograd.grad(direct_loss(o, logits, LABELS, gold, generator=generator).total, logits)[0]
        for o in (Objective(advantage="group_exact", **fields), Objective(**fields))
    )
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact[0]).abs() <= 5 * error + 1e-6).all()
    assert (error < 0.02).all()


@pytest.mark.parametrize("objective", [GOLD_ALONE, Objective(advantage="group_exact", brier_weight=0.3)])
def test_one_times_eight_is_four_times_two(objective):
    weights = []
    for micro_batch in (None, 2):
        model = decoder()
        trainer = DirectTrainer(model, objective, DirectSettings(steps=3, micro_batch=micro_batch), repeat(prompts()))
        lines = list(trainer.run())
        weights.append([lines[-1].calibration_loss, lines[-1].brier_loss, lines[-1].policy_loss])
        weights[-1] += [p.detach().clone() for p in model.parameters()]
    for whole, parts in zip(*weights, strict=True):
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)


def test_what_the_log_says_can_be_recomputed():
    model, batch = decoder(), prompts(64)
    p = decision_probabilities(model, [batch])
    raw = decision_probabilities(model, [batch], over_labels=False)
    (line,) = DirectTrainer(model, Objective(group=4), DirectSettings(steps=1), repeat(batch)).run()
    confidence, decided = p.max(1)
    assert line.step == 1
    assert line.accuracy == pytest.approx((decided == batch.gold).double().mean().item())
    assert line.mean_confidence == pytest.approx(confidence.mean().item())
    assert line.nll == pytest.approx(-p.gather(1, batch.gold[:, None]).log().mean().item())
    assert line.entropy == pytest.approx(torch.distributions.Categorical(p).entropy().mean().item())
    assert line.label_mass == pytest.approx(raw.sum(1).mean().item())
    # Three labels of twelve words: most of what an untrained model says is no label.
    assert line.unreadable == pytest.approx(1 - line.label_mass, abs=0.1)


def test_groups_that_teach_nothing_are_counted():
    model = decoder()
    batch = prompts()
    batch = PromptBatch(batch.input_ids, batch.attention_mask, LABELS, torch.zeros(8, dtype=torch.int64))
    list(DirectTrainer(model, GOLD_ALONE, DirectSettings(steps=150, learning_rate=0.03), repeat(batch)).run())
    before = [p.detach().clone() for p in model.parameters()]
    (line,) = DirectTrainer(model, Objective(), DirectSettings(steps=1, learning_rate=0.1), repeat(batch)).run()
    assert (line.equal_groups, line.reward) == (1.0, 1.0)
    for was, now in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), was)


def test_a_loss_that_is_no_number_stops_with_the_batch_saved(tmp_path):
    model, batch = decoder(), prompts()
    settings = DirectSettings(steps=5, save_to=tmp_path)
    trainer = DirectTrainer(model, GOLD_ALONE, settings, repeat(batch))
    trainer.take(batch)
    before = deepcopy(model.state_dict())
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(NotFinite, match="step 1: the loss is nan"):
        trainer.take(batch)
    saved = torch.load(tmp_path / "stopped-at-step-1.pt")
    assert torch.equal(saved["input_ids"], batch.input_ids)
    assert torch.equal(saved["gold"], batch.gold)
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["lm_head.weight"]


def test_too_large_a_micro_batch_names_the_next_smaller_one():
    class Narrow(torch.nn.Module):
        """A model with room for three prompts."""

        def __init__(self):
            super().__init__()
            self.inner = decoder()

        def forward(self, input_ids, **rest):
            if len(input_ids) > 3:
                raise torch.OutOfMemoryError("no room")
            return self.inner(input_ids=input_ids, **rest)

    batch = prompts(12)
    with pytest.raises(OutOfMemory, match=r"try micro_batch 4$"):
        DirectTrainer(Narrow(), GOLD_ALONE, DirectSettings(steps=1, micro_batch=6), repeat(batch)).take(batch)
    DirectTrainer(Narrow(), GOLD_ALONE, DirectSettings(steps=1, micro_batch=3), repeat(batch)).take(batch)


def test_prompts_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="8 prompts a step do not divide into micro-batches of 3"):
        DirectTrainer(decoder(), GOLD_ALONE, DirectSettings(steps=1, micro_batch=3), []).take(prompts())


def test_own_correct_decisions_sharpen():
    """Frozen rollouts end at the frozen distribution times the posterior: more extreme than either."""
    model = decoder()
    one = prompts(1)
    # One prompt whose gold label is 0 in 6 of 10 cases.
    ids, mask = (t.expand(10, -1) for t in (one.input_ids, one.attention_mask))
    batch = PromptBatch(ids, mask, LABELS, torch.tensor([0] * 6 + [1] * 3 + [2]))
    list(DirectTrainer(model, GOLD_ALONE, DirectSettings(steps=150, learning_rate=0.03), repeat(batch)).run())
    p0 = decision_probabilities(model, [one])[0]
    pi = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    torch.testing.assert_close(p0, pi, rtol=0, atol=0.01)
    list(OwnCorrectTrainer(model, DirectSettings(steps=150, learning_rate=0.03), repeat(batch)).run())
    torch.testing.assert_close(decision_probabilities(model, [one])[0], p0 * pi / (p0 @ pi), rtol=0, atol=0.01)
