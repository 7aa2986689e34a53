"""The pieces of the loss: by hand, by finite differences, by enumeration."""

import itertools
from math import log

import pytest
import torch
from torch.nn.functional import cross_entropy

from demur.training.objectives import (
    SCALE_EPSILON,
    Objective,
    brier_term,
    calibration_targets,
    calibration_term,
    exact_policy_term,
    expected_targets,
    group_advantages,
    label_logprobs,
    policy_strength,
    sampled_policy_term,
)

torch.set_num_threads(1)
KINDS = ("paper", "others", "gold")
LABELS = torch.tensor([4, 1, 6])


def logits_of(rows, entries=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, entries, generator=generator, dtype=torch.float64, requires_grad=True)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_targets_are_those_of_the_definition():
    p = torch.full((2, 4), 0.25)
    decided, gold = torch.tensor([1, 1]), torch.tensor([1, 3])
    correct = decided == gold
    right = [0.0, 1.0, 0.0, 0.0]
    for kind, wrong in (
        ("paper", [0.25, 0.25, 0.25, 0.25]),
        ("others", [1 / 3, 0.0, 1 / 3, 1 / 3]),
        ("gold", [0.0, 0.0, 0.0, 1.0]),
    ):
        torch.testing.assert_close(
            calibration_targets(kind, p, decided, correct, gold), torch.tensor([right, wrong]), msg=kind
        )


def test_right_or_wrong_is_all_that_two_targets_need():
    p = torch.full((1, 3), 1 / 3)
    for kind in ("paper", "others"):
        calibration_targets(kind, p, torch.tensor([0]), torch.tensor([False]))
    with pytest.raises(ValueError, match="gold labels"):
        calibration_targets("gold", p, torch.tensor([0]), torch.tensor([False]))


@pytest.mark.parametrize("kind", ["paper", "others"])
def test_a_clamped_wrong_decision_is_pushed_no_further_than_uniform(kind):
    p = torch.tensor([[0.2, 0.5, 0.3], [0.5, 0.2, 0.3], [0.35, 0.35, 0.3]], dtype=torch.float64)
    decided, wrong = torch.tensor([0, 0, 0]), torch.tensor([False, False, False])
    plain = calibration_targets(kind, p, decided, wrong)
    clamped = calibration_targets(kind, p, decided, wrong, clamp=True)
    assert not clamped[0].any()
    torch.testing.assert_close(clamped[1], plain[1])
    torch.testing.assert_close(clamped[2], plain[2] / 2)
    right = calibration_targets(kind, p, decided, ~wrong, clamp=True)
    assert right.tolist() == [[1, 0, 0]] * 3


def test_the_calibration_term_by_hand():
    logits = torch.tensor([[log(2), log(1), log(5)], [log(4), log(4), log(2)]])
    target = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    ids = torch.tensor([0, 1])
    over_all = (log(8 / 2) + log(10 / 4)) / 2
    over_labels = (log(3 / 2) + log(2)) / 2
    assert calibration_term(logits, ids, target).item() == pytest.approx(over_all)
    assert calibration_term(logits, ids, target, over="labels").item() == pytest.approx(over_labels)
    first_only = calibration_term(logits, ids, target, readable=torch.tensor([True, False]), n_rollouts=4)
    assert first_only.item() == pytest.approx(log(4) / 4)


def test_the_brier_term_by_hand():
    logits = torch.tensor([[log(2), log(1), log(5)]])
    ids, gold = torch.tensor([0, 1]), torch.tensor([0])
    assert brier_term(logits, ids, gold).item() == pytest.approx((6 / 8) ** 2 + (1 / 8) ** 2 + (5 / 8) ** 2)
    assert brier_term(logits, ids, gold, over="labels").item() == pytest.approx(2 / 9)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    scaled = group_advantages(rewards)
    assert scaled[0].tolist() == pytest.approx([0.75 / (0.5 + SCALE_EPSILON)] + [-0.25 / (0.5 + SCALE_EPSILON)] * 3)
    assert not scaled[1].any()
    assert group_advantages(rewards, scale=False)[0].tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize("over", ["vocabulary", "labels"])
def test_gradients_agree_with_finite_differences(over):
    logits = logits_of(3)
    gold = torch.tensor([0, 2, 1])
    readable = torch.tensor([True, True, False])
    target = torch.rand(3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: calibration_term(z, LABELS, target, over=over, readable=readable), logits)
    assert torch.autograd.gradcheck(lambda z: brier_term(z, LABELS, gold, over=over), logits)


def test_the_expected_policy_term_has_the_gradient_of_the_expected_reward():
    logits = logits_of(3)

    def reward(z):
        return label_logprobs(z, LABELS)[:, 0].exp().mean()

    assert torch.autograd.gradcheck(reward, logits)
    term = exact_policy_term(label_logprobs(logits, LABELS)[:, 0], "expected", group=8)
    torch.testing.assert_close(gradient(term, logits), -gradient(reward(logits), logits))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("group", "options"), [(2, 3), (4, 3), (8, 2)])
def test_the_exact_group_is_the_mean_over_all_groups(scale, group, options):
    logits = logits_of(1, options)
    ids, gold = torch.arange(options), 1
    logp = label_logprobs(logits, ids)[0]
    mean = torch.zeros_like(logits)
    for drawn in itertools.product(range(options), repeat=group):
        drawn = torch.tensor(drawn)
        chance = logp.detach()[drawn].sum().exp()
        advantages = group_advantages((drawn == gold).double()[None], scale=scale)[0]
        mean += chance * gradient(sampled_policy_term(label_logprobs(logits, ids)[0][drawn], advantages), logits)
    exact = exact_policy_term(label_logprobs(logits, ids)[:, gold], "group_exact", group=group, scale=scale)
    torch.testing.assert_close(gradient(exact, logits), mean)


def test_large_unscaled_groups_are_the_plain_gradient():
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    h = policy_strength(p, "group_exact", group=1000, scale=False)
    torch.testing.assert_close(h, p * 0.999)


@pytest.mark.parametrize("decision", ["sampled", "argmax"])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_expected_targets_are_the_mean_over_decisions(kind, clamp, decision):
    p = torch.tensor([[0.34, 0.46, 0.2], [0.32, 0.345, 0.335]], dtype=torch.float64)
    gold = torch.tensor([0, 2])
    mean = torch.zeros_like(p)
    for option in range(3):
        decided = torch.full((2,), option)
        chance = p[:, option] if decision == "sampled" else (p.argmax(-1) == option).double()
        mean += chance[:, None] * calibration_targets(kind, p, decided, decided == gold, gold, clamp=clamp)
    torch.testing.assert_close(expected_targets(kind, decision, p, gold, clamp=clamp), mean)


@pytest.mark.parametrize("decision", ["sampled", "argmax"])
def test_with_two_options_others_is_gold(decision):
    decided, gold = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    p = torch.tensor([[0.7, 0.3]]).expand(4, 2)
    others, by_gold = (calibration_targets(kind, p, decided, decided == gold, gold) for kind in ("others", "gold"))
    assert torch.equal(others, by_gold)
    torch.testing.assert_close(expected_targets("others", decision, p, gold), by_gold)


def test_gold_alone_is_sft_on_the_decision_token():
    logits, gold = logits_of(5), torch.tensor([0, 2, 1, 1, 0])
    target = expected_targets("gold", "sampled", label_logprobs(logits, LABELS).exp(), gold)
    ours = gradient(calibration_term(logits, LABELS, target), logits)
    torch.testing.assert_close(ours, gradient(cross_entropy(logits, LABELS[gold]), logits), rtol=0, atol=1e-12)


def test_micro_batches_add_up():
    logits, gold = logits_of(8), torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])
    target = torch.nn.functional.one_hot(gold, 3).double()
    readable = torch.tensor([True, False, True, True, True, False, True, True])
    advantages = torch.linspace(-1, 1, 8, dtype=torch.float64)

    def loss(rows, steps):
        z, options = {"readable": readable[rows], "accumulation_steps": steps}, label_logprobs(logits[rows], LABELS)
        return (
            calibration_term(logits[rows], LABELS, target[rows], **z)
            + brier_term(logits[rows], LABELS, gold[rows], **z)
            + sampled_policy_term(options[:, 0], advantages[rows], accumulation_steps=steps)
            + exact_policy_term(options[:, 1], "group_exact", group=4, accumulation_steps=steps)
        )

    whole = gradient(loss(slice(0, 8), 1), logits)
    parts = sum(gradient(loss(slice(i, i + 2), 4), logits) for i in range(0, 8, 2))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)


def test_rows_may_have_options_of_their_own():
    logits = logits_of(2)
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    rows = torch.cat([label_logprobs(logits[:1], ids[0]), label_logprobs(logits[1:], ids[1])])
    torch.testing.assert_close(label_logprobs(logits, ids), rows)


def test_half_precision_logits_are_read_in_float32():
    logits = logits_of(2).detach()
    read = label_logprobs(logits.to(torch.bfloat16), LABELS)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, label_logprobs(logits.to(torch.bfloat16).float(), LABELS))


@pytest.mark.parametrize(
    "fields", [{"calibration_weight": 0.5}, {"group": 1}, {"policy_weight": -1.0}, {"brier_weight": -1.0}]
)
def test_objectives_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match=r"target|group|negative"):
        Objective(**fields)
