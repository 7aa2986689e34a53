"""Where each objective ends: the gradients of the real losses, averaged by enumeration, vanish there."""

import itertools

import numpy as np
import pytest
import torch

from demur.training.fixed_points import expected_push, fixed_point, softmax
from demur.training.objectives import (
    Objective,
    brier_term,
    calibration_targets,
    calibration_term,
    exact_policy_term,
    expected_targets,
    label_logprobs,
)

torch.set_num_threads(1)
POSTERIORS = {
    2: [[0.7, 0.3], [0.45, 0.55], [0.97, 0.03]],
    3: [[0.6, 0.3, 0.1], [0.3, 0.38, 0.32], [0.01, 0.01, 0.98]],
    10: [[0.9, *[0.1 / 9] * 9], np.arange(1, 11) / 55],
}


def calibration_only(kind, decision, clamp=False):
    return Objective(policy_weight=0, target=kind, target_decision=decision, target_clamp=clamp, calibration_weight=1.0)


def mean_gradient(objective, p, pi, mode):
    """d/d logits of the expected loss at p, by enumerating gold labels and, in reasoned mode, sampled decisions.

    The vocabulary holds two entries more than the options, which the fixed point gives no probability.
    """
    n, k = p.shape
    padded = np.concatenate([np.log(p), np.full((n, 2), -40.0)], axis=1)
    logits = torch.tensor(padded, requires_grad=True)
    ids = torch.arange(k)
    probabilities = label_logprobs(logits, ids).detach().exp()
    total = torch.zeros_like(logits)
    decided_by = range(k) if mode == "reasoned" and objective.target_decision == "sampled" else [None]
    for gold, decision in itertools.product(range(k), decided_by):
        golds = torch.full((n,), gold)
        chance = torch.tensor(pi)[:, gold]
        if mode == "direct":
            target = expected_targets(
                objective.target, objective.target_decision, probabilities, golds, clamp=objective.target_clamp
            )
        else:
            decided = probabilities.argmax(-1) if decision is None else torch.full((n,), decision)
            if decision is not None:
                chance = chance * probabilities[:, decision]
            target = calibration_targets(
                objective.target, probabilities, decided, decided == golds, golds, clamp=objective.target_clamp
            )
        loss = calibration_term(logits, ids, target * chance[:, None], n_rollouts=1)
        total += torch.autograd.grad(loss, logits)[0]
    return total.numpy()


@pytest.mark.parametrize("k", POSTERIORS)
@pytest.mark.parametrize("mode", ["direct", "reasoned"])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("decision", ["sampled", "argmax"])
@pytest.mark.parametrize("kind", ["paper", "others", "gold"])
def test_the_expected_gradient_vanishes_at_the_fixed_point(kind, decision, clamp, mode, k):
    pi = np.array(POSTERIORS[k])
    objective = calibration_only(kind, decision, clamp)
    p = fixed_point(objective, pi)
    assert np.abs(mean_gradient(objective, p, pi, mode)).max() < 1e-6
    # Not merely because all gradients are small: elsewhere it does not.
    away = softmax(np.log(p) + np.arange(k))
    assert np.abs(mean_gradient(objective, away, pi, mode)).max() > 1e-3


@pytest.mark.parametrize("k", POSTERIORS)
def test_the_closed_forms(k):
    pi = np.array(POSTERIORS[k])
    best, r = pi.argmax(axis=1), pi.max(axis=1)
    flat = 1 / (1 - pi)
    for kind in ("paper", "others"):
        expected = flat / flat.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(fixed_point(calibration_only(kind, "sampled"), pi), expected, atol=1e-9)
    rows = np.arange(len(pi))
    paper, others = (fixed_point(calibration_only(kind, "argmax"), pi)[rows, best] for kind in ("paper", "others"))
    np.testing.assert_allclose(paper, r + (1 - r) / k, atol=1e-9)
    np.testing.assert_allclose(others, r, atol=1e-9)
    for objective in (calibration_only("gold", "sampled"), Objective(policy_weight=0, brier_weight=1.0)):
        np.testing.assert_allclose(fixed_point(objective, pi), pi, atol=1e-9)
    if k == 2:
        np.testing.assert_allclose(fixed_point(calibration_only("paper", "sampled"), pi), pi, atol=1e-9)


def test_far_too_flat_and_too_sharp():
    ten = fixed_point(calibration_only("paper", "sampled"), np.array(POSTERIORS[10][:1]))
    assert ten[0, 0] == pytest.approx(0.52, abs=0.005)

    def top(**fields):
        objective = Objective(target="paper", calibration_weight=1.0, **fields)
        return fixed_point(objective, [[0.7, 0.3]])[0, 0]

    assert top(advantage="expected") == pytest.approx(0.82, abs=0.005)
    assert top(advantage="group_exact", group=8) == pytest.approx(0.88, abs=0.005)
    assert fixed_point(Objective(), [[0.3, 0.38, 0.32]]).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    "objective",
    [
        Objective(advantage="group_exact", target="gold", calibration_weight=0.5),
        Objective(advantage="expected", target="paper", target_clamp=True, calibration_weight=0.2),
        Objective(policy_weight=0.2, advantage="group_exact", scale_rewards=False, brier_weight=1.0),
        Objective(policy_weight=0.0, target="others", target_clamp=True, calibration_weight=1.0),
    ],
)
def test_training_from_scratch_ends_there(objective):
    """Gradient descent on free logits with the real losses; every gold label as often as its posterior says."""
    pi = np.array([[0.6, 0.3, 0.1], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8]])
    owner = torch.arange(3).repeat_interleave(10)
    gold = torch.cat([torch.arange(3).repeat_interleave(torch.tensor(row)) for row in np.rint(10 * pi).astype(int)])
    free = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([free], lr=3.0)
    for _ in range(1500):
        logits, ids = free[owner], torch.arange(3)
        logp = label_logprobs(logits, ids)
        loss = objective.brier_weight * brier_term(logits, ids, gold)
        loss += objective.policy_weight * exact_policy_term(
            logp.gather(1, gold[:, None])[:, 0],
            objective.advantage,
            group=objective.group,
            scale=objective.scale_rewards,
        )
        if objective.target:
            target = expected_targets(
                objective.target, objective.target_decision, logp.exp(), gold, clamp=objective.target_clamp
            )
            loss += objective.calibration_weight * calibration_term(logits, ids, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(torch.softmax(free, -1).detach().numpy(), fixed_point(objective, pi), atol=1e-3)


def test_an_objective_without_any_term_is_refused():
    with pytest.raises(ValueError, match="without any term"):
        fixed_point(Objective(policy_weight=0), [[0.5, 0.5]])


def test_the_push_points_towards_the_fixed_point():
    objective = calibration_only("gold", "sampled")
    np.testing.assert_allclose(expected_push(objective, [[0.5, 0.5]], [[0.7, 0.3]]), [[0.2, -0.2]])
