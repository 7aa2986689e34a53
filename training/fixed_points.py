"""Where an objective leaves the decision's distribution, given the true posterior pi(. | input).

A model that could move every input's distribution freely would follow the expected gradient of its objective to the
point where it vanishes. `expected_push` is that gradient, `fixed_point` that point.
"""

import numpy as np
import numpy.typing as npt
import torch

from demur.training.objectives import CLAMP_FADE, Advantage, Objective, policy_strength

FloatArray = npt.NDArray[np.float64]

_STEPS = 500
_TOLERANCE = 1e-12
_ENOUGH = 1e-7


def expected_push(objective: Objective, p: npt.ArrayLike, pi: npt.ArrayLike) -> FloatArray:
    """Expected *descent* direction of the labels' logits, [n, K], where the model says p [n, K] and pi [n, K] is true.

    Zero is a fixed point. The expectation is over the gold label drawn from pi, and over decisions drawn from p.
    """
    p, pi = np.asarray(p, np.float64), np.asarray(pi, np.float64)
    push = np.zeros_like(p)
    if objective.policy_weight > 0:
        # The mean of group-wise sampled gradients is the group-exact one.
        advantage: Advantage = "expected" if objective.advantage == "expected" else "group_exact"
        strength: FloatArray = policy_strength(
            torch.from_numpy(p.copy()), advantage, group=objective.group, scale=objective.scale_rewards
        ).numpy()
        push += objective.policy_weight * _towards(pi * strength, p)
    if objective.calibration_weight > 0:
        push += objective.calibration_weight * _towards(_mean_target(objective, p, pi), p)
    if objective.brier_weight > 0:
        gap = p - pi
        push -= 2 * objective.brier_weight * p * (gap - (p * gap).sum(axis=1, keepdims=True))
    return push


def fixed_point(objective: Objective, pi: npt.ArrayLike) -> FloatArray:
    """Return [n, K] distributions that the objective settles at where pi [n, K] is the true posterior.

    The policy loss alone has none inside: it returns the one-hot most probable option. Where several exist (`argmax`
    targets confirm whichever option is decided) it is the one reached from a nearly uniform start that leans
    towards pi.

    Raises:
        ValueError: an objective that pushes nothing.
        ArithmeticError: no fixed point was found.
    """
    pi = np.asarray(pi, np.float64)
    if objective.calibration_weight == objective.brier_weight == 0:
        if objective.policy_weight == 0:
            raise ValueError("an objective without any term has no fixed point")
        one_hot: FloatArray = np.eye(pi.shape[1])[pi.argmax(axis=1)]
        return one_hot
    z = np.log(0.9 / pi.shape[1] + 0.1 * pi)
    # Follow the flow by implicit steps that grow as it slows: at the end they are Newton's.
    step = np.ones(len(pi))
    push = expected_push(objective, softmax(z), pi)
    for _ in range(_STEPS):
        size = np.abs(push).max(axis=1)
        moving = size > _TOLERANCE
        if not moving.any():
            return softmax(z)
        rows = np.flatnonzero(moving)
        implicit = np.eye(pi.shape[1]) / step[rows, None, None] - _jacobian(objective, z[rows], pi[rows])
        # Logits are free up to a constant: hold their sum.
        moved = z[rows] + np.linalg.solve(implicit + 1.0, push[rows][:, :, None])[:, :, 0]
        after = expected_push(objective, softmax(moved), pi[rows])
        grown = np.abs(after).max(axis=1)
        fine = grown < 2 * size[rows]
        step[rows] *= np.where(fine, np.clip(size[rows] / np.maximum(grown, 1e-300), 0.5, 3.0), 0.25)
        step = np.clip(step, 1e-3, 1e9)
        z[rows[fine]], push[rows[fine]] = moved[fine], after[fine]
    if np.abs(push).max() > 1e-7:
        row = int(np.abs(push).max(axis=1).argmax())
        raise ArithmeticError(
            f"no fixed point found for pi = {pi[row]}: the push is still {np.abs(push[row]).max():.1e}"
        )
    return softmax(z)


def softmax(z: FloatArray) -> FloatArray:
    """Row-wise softmax of [n, K]."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p: FloatArray = e / e.sum(axis=1, keepdims=True)
    return p


def _towards(weights: FloatArray, p: FloatArray) -> FloatArray:
    """The descent direction of a cross-entropy with unnormalised targets."""
    push: FloatArray = weights - weights.sum(axis=1, keepdims=True) * p
    return push


def _mean_target(objective: Objective, p: FloatArray, pi: FloatArray) -> FloatArray:
    if objective.target == "gold":
        return pi
    k = p.shape[1]
    decides = p if objective.target_decision == "sampled" else np.eye(k)[p.argmax(axis=1)]
    wrong = decides * (1 - pi)
    if objective.target_clamp:
        wrong = wrong * np.clip((k * p - 1) / CLAMP_FADE, 0, 1)
    total = wrong.sum(axis=1, keepdims=True)
    mean: FloatArray = decides * pi + (total / k if objective.target == "paper" else (total - wrong) / (k - 1))
    return mean


def _jacobian(objective: Objective, z: FloatArray, pi: FloatArray, h: float = 1e-6) -> FloatArray:
    columns = [
        (expected_push(objective, softmax(z + e), pi) - expected_push(objective, softmax(z - e), pi)) / (2 * h)
        for e in h * np.eye(z.shape[1])
    ]
    return np.stack(columns, axis=2)
