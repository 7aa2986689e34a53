"""The loss of direct training: one forward gives the whole decision distribution, so nothing is rolled out."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from demur.training.objectives import (
    Objective,
    TargetKind,
    brier_term,
    calibration_targets,
    calibration_term,
    exact_policy_term,
    expected_targets,
    group_advantages,
    label_logprobs,
    sampled_policy_term,
)

#: What `own_correct_loss` logs beside its own loss.
OWN_CORRECT = Objective(policy_weight=0, target="gold", calibration_weight=1.0)


@dataclass(frozen=True, slots=True, eq=False)
class DirectLoss:
    """A micro-batch's loss, its parts, and what was seen on the way; all but `total` are detached.

    Attributes:
        total: weighted sum, to call `backward` on.
        policy, calibration, brier: the parts before their weights; 0 where the objective has none.
        reward: mean probability of gold, or the mean reward of the sampled decisions.
        equal_groups: groups whose rewards are all equal, which teach the policy nothing.
        unreadable: sampled tokens that are no label.
        probabilities: [B, K] of the labels, normalised as the objective says.
    """

    total: Tensor
    policy: float
    calibration: float
    brier: float
    reward: float
    equal_groups: int
    unreadable: int
    probabilities: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Policy:
    term: Tensor
    target: Tensor | None
    reward: float
    equal_groups: int = 0
    unreadable: int = 0


def direct_loss(
    objective: Objective,
    logits: Tensor,
    label_ids: Tensor,
    gold: Tensor,
    *,
    accumulation_steps: int = 1,
    generator: torch.Generator | None = None,
    tokens: Tensor | None = None,
) -> DirectLoss:
    """The objective's loss on a micro-batch of prompts.

    Args:
        objective: what to minimise; its `advantage` says whether decisions are sampled or averaged over.
        logits: [B, V] at the decision position.
        label_ids: [K] or [B, K].
        gold: [B], option indices.
        accumulation_steps: micro-batches an optimiser step.
        generator: of the sampled decisions.
        tokens: [B, G], decisions sampled elsewhere from this very model; drawn here if None.
    """
    logprobs = label_logprobs(logits, label_ids, objective.over)
    probabilities = logprobs.detach().exp()
    zero = logits.new_zeros(())
    if objective.advantage == "sampled" and _samples(objective):
        if tokens is None:
            tokens = sample_decisions(objective, logits, label_ids, generator)
        policy = _sampled(objective, logits, label_ids, gold, tokens, probabilities, accumulation_steps)
    else:
        policy = _exact(objective, logprobs, gold, probabilities, accumulation_steps)
    calibration = brier = zero
    if policy.target is not None:
        calibration = calibration_term(
            logits, label_ids, policy.target, over=objective.over, accumulation_steps=accumulation_steps
        )
    if objective.brier_weight > 0:
        brier = brier_term(logits, label_ids, gold, over=objective.over, accumulation_steps=accumulation_steps)
    total = (
        objective.policy_weight * policy.term
        + objective.calibration_weight * calibration
        + objective.brier_weight * brier
    )
    return DirectLoss(
        total=total,
        policy=float(policy.term.detach()),
        calibration=float(calibration.detach()),
        brier=float(brier.detach()),
        reward=policy.reward,
        equal_groups=policy.equal_groups,
        unreadable=policy.unreadable,
        probabilities=probabilities,
    )


def own_correct_loss(
    logits: Tensor, frozen_logits: Tensor, label_ids: Tensor, gold: Tensor, *, accumulation_steps: int = 1
) -> DirectLoss:
    """SFT on own correct decisions: gold is learned with the probability that a frozen copy decides for it.

    All of a prompt's rollouts are averaged over. Its fixed point is therefore proportional to the frozen distribution
    *times* the posterior. (With fresh instead of frozen rollouts it would be the expected policy gradient.)
    Logits [B, V] of the model and of the frozen copy; the others as for `direct_loss`.
    """
    seen = direct_loss(OWN_CORRECT, logits, label_ids, gold, accumulation_steps=accumulation_steps)
    weight = label_logprobs(frozen_logits.detach(), label_ids).gather(1, gold[:, None]).exp()
    logprobs = label_logprobs(logits, label_ids).gather(1, gold[:, None])
    total = -(weight * logprobs).sum() / (len(gold) * accumulation_steps)
    return replace(seen, total=total, reward=float(weight.mean()))


def sample_decisions(
    objective: Objective, logits: Tensor, label_ids: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw G tokens a prompt at temperature 1, [B, G]: of the whole vocabulary, or of the labels, as `over` says."""
    values = logits.detach().float()
    ids = label_ids.expand(len(logits), -1)
    if objective.over == "labels":
        drawn = torch.multinomial(values.gather(1, ids).softmax(-1), objective.group, True, generator=generator)
        return ids.gather(1, drawn)
    return torch.multinomial(values.softmax(-1), objective.group, True, generator=generator)


def _samples(objective: Objective) -> bool:
    needs_decision = objective.target in ("paper", "others") and objective.target_decision == "sampled"
    return objective.policy_weight > 0 or needs_decision


def _sampled(
    objective: Objective,
    logits: Tensor,
    label_ids: Tensor,
    gold: Tensor,
    tokens: Tensor,
    probabilities: Tensor,
    accumulation_steps: int,
) -> _Policy:
    ids = label_ids.expand(len(tokens), -1)
    is_label = tokens[:, :, None] == ids[:, None, :]
    readable, decided = is_label.any(-1), is_label.int().argmax(-1)
    correct = tokens == ids.gather(1, gold[:, None])
    rewards = correct.to(probabilities.dtype)
    advantages = group_advantages(rewards, scale=objective.scale_rewards)
    chosen = label_logprobs(logits, tokens, "vocabulary")
    if objective.over == "labels":
        chosen = chosen - label_logprobs(logits, label_ids, "vocabulary").logsumexp(-1, keepdim=True)
    term = sampled_policy_term(chosen.flatten(), advantages.flatten(), accumulation_steps=accumulation_steps)
    target = None
    if objective.target is not None and objective.calibration_weight > 0:
        if objective.target == "gold" or objective.target_decision == "argmax":
            target = _mean_target(objective, objective.target, probabilities, gold)
        else:
            # A prompt's rollouts share one distribution: the mean of their targets has the mean of their gradients.
            rows, group = decided.shape
            targets = calibration_targets(
                objective.target,
                probabilities.repeat_interleave(group, 0),
                decided.flatten(),
                correct.flatten(),
                clamp=objective.target_clamp,
            )
            target = (targets * readable.flatten()[:, None]).view(rows, group, -1).mean(1)
    return _Policy(
        term=term,
        target=target,
        reward=float(rewards.mean()),
        equal_groups=int((rewards == rewards[:, :1]).all(-1).sum()),
        unreadable=int((~readable).sum()),
    )


def _mean_target(objective: Objective, kind: TargetKind, probabilities: Tensor, gold: Tensor) -> Tensor:
    return expected_targets(kind, objective.target_decision, probabilities, gold, clamp=objective.target_clamp)


def _exact(
    objective: Objective, logprobs: Tensor, gold: Tensor, probabilities: Tensor, accumulation_steps: int
) -> _Policy:
    gold_logprobs = logprobs.gather(1, gold[:, None])[:, 0]
    term = logprobs.new_zeros(())
    if objective.policy_weight > 0:
        term = exact_policy_term(
            gold_logprobs,
            objective.advantage,
            group=objective.group,
            scale=objective.scale_rewards,
            accumulation_steps=accumulation_steps,
        )
    target = None
    if objective.target is not None and objective.calibration_weight > 0:
        target = _mean_target(objective, objective.target, probabilities, gold)
    return _Policy(term=term, target=target, reward=float(gold_logprobs.detach().exp().mean()))
