"""The pieces of the loss at the decision token, the same functions for direct and for reasoned training.

Shapes: B rollouts, K labels, V vocabulary entries, P prompts with G rollouts each. A *decision* is a label's index.
Everything a target is made of is a constant: only `calibration_term`, `brier_term` and the policy terms carry
gradients. `demur.training.fixed_points` says where each of them ends up; docs/objectives.md derives it.
"""

from dataclasses import dataclass
from math import comb, sqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

TargetKind = Literal["paper", "others", "gold"]
TargetDecision = Literal["sampled", "argmax"]
Over = Literal["vocabulary", "labels"]
Advantage = Literal["sampled", "group_exact", "expected"]

#: TRL adds it to a group's standard deviation before dividing by it.
SCALE_EPSILON = 1e-4
#: A clamped term fades out while p falls from (1 + fade)/K to 1/K. A step would leave the decision to jump across it.
CLAMP_FADE = 0.1


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised at the decision token; the defaults are vanilla GRPO.

    Attributes:
        policy_weight: of the policy loss on the decision token; 0 is the paper's way, which moves the reasoning only.
        advantage: how the policy loss on the decision is estimated (direct mode).
        group: rollouts a prompt, G.
        scale_rewards: divide a group's rewards by their standard deviation.
        target: of the calibration term; None for none.
        target_decision: whose correctness makes the target: the sampled decision's or the most probable one's.
        target_clamp: see `calibration_targets`.
        calibration_weight: lambda.
        brier_weight: of the differentiable Brier term.
        over: what the decision's probabilities are normalised over.
    """

    policy_weight: float = 1.0
    advantage: Advantage = "sampled"
    group: int = 8
    scale_rewards: bool = True
    target: TargetKind | None = None
    target_decision: TargetDecision = "sampled"
    target_clamp: bool = False
    calibration_weight: float = 0.0
    brier_weight: float = 0.0
    over: Over = "vocabulary"

    def __post_init__(self) -> None:
        if min(self.policy_weight, self.calibration_weight, self.brier_weight) < 0:
            raise ValueError("weights must not be negative")
        if self.calibration_weight > 0 and self.target is None:
            raise ValueError("a calibration weight needs a target: paper, others or gold")
        if self.group < 2 and self.policy_weight > 0 and self.advantage != "expected":
            raise ValueError(f"a group of {self.group} has no advantage: at least 2 rollouts a prompt")


def label_logprobs(logits: Tensor, label_ids: Tensor, over: Over = "vocabulary") -> Tensor:
    """Log-probabilities [B, K] of the labels at temperature 1, in float32 or better.

    Args:
        logits: [B, V], as the head makes them, not divided by any sampling temperature.
        label_ids: [K], or [B, K] where options differ from row to row.
        over: normalise over the whole vocabulary or over the labels only.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    chosen = logits.gather(-1, label_ids.expand(len(logits), -1))
    return chosen - (logits if over == "vocabulary" else chosen).logsumexp(-1, keepdim=True)


def calibration_targets(
    kind: TargetKind,
    probabilities: Tensor,
    decided: Tensor,
    correct: Tensor,
    gold: Tensor | None = None,
    *,
    clamp: bool = False,
) -> Tensor:
    """What the decision's distribution is pulled towards after one rollout, [B, K] without gradient.

    `paper` and `others`: one-hot if the decision was right; if wrong, uniform over all options or over the *other*
    ones. `gold`: one-hot gold whatever was decided (never clamped: it needs no decision).

    With `clamp` a wrong decision is pushed no further once it has no more than the uniform 1/K: its row fades to zeros,
    which is no term at all.

    Args:
        kind: the rule.
        probabilities: [B, K], what the model gives the options now; looked at by `clamp` only.
        decided: [B], option indices.
        correct: [B], booleans.
        gold: [B], option indices; needed by `gold` only, so that right-or-wrong feedback is enough for the other two.
        clamp: see above.
    """
    k = probabilities.shape[-1]
    dtype = probabilities.dtype
    if kind == "gold":
        if gold is None:
            raise ValueError("the target `gold` needs the gold labels")
        return one_hot(gold, k).to(dtype)
    own = one_hot(decided, k).to(dtype)
    wrong = torch.full_like(own, 1 / k) if kind == "paper" else (1 - own) / (k - 1)
    if clamp:
        wrong = wrong * _clamp_strength((probabilities.detach() * own).sum(-1, keepdim=True), k)
    return torch.where(correct[:, None], own, wrong)


def expected_targets(
    kind: TargetKind, decision: TargetDecision, probabilities: Tensor, gold: Tensor, *, clamp: bool = False
) -> Tensor:
    """The mean of `calibration_targets` over decisions drawn from `probabilities`, in closed form; [B, K].

    For `argmax` there is nothing to average. Probability outside the labels makes no target: rows then sum to less
    than one (`gold` apart, which needs no decision).
    """
    p = probabilities.detach()
    if kind == "gold" or decision == "argmax":
        decided = p.argmax(-1)
        return calibration_targets(kind, p, decided, decided == gold, gold, clamp=clamp)
    k = p.shape[-1]
    is_gold = one_hot(gold, k).to(p.dtype)
    wrong = p * (1 - is_gold) * (_clamp_strength(p, k) if clamp else 1.0)
    total = wrong.sum(-1, keepdim=True)
    return p * is_gold + (total / k if kind == "paper" else (total - wrong) / (k - 1))


def calibration_term(
    logits: Tensor,
    label_ids: Tensor,
    target: Tensor,
    *,
    over: Over = "vocabulary",
    readable: Tensor | None = None,
    n_rollouts: int | None = None,
    accumulation_steps: int = 1,
) -> Tensor:
    """Cross-entropy of `target` against the labels' probabilities; a scalar to minimise.

    Summed over readable rollouts, divided by *all* rollouts of the micro-batch and by the number of micro-batches, so
    that eight at once and four times two add up to the same gradient.

    Args:
        logits: [B, V] at the decision position.
        label_ids: [K] or [B, K].
        target: [B, K], see `calibration_targets`.
        over: see `label_logprobs`.
        readable: [B], booleans; None if every rollout has a decision.
        n_rollouts: all rollouts of the micro-batch, those without a row here among them; B if None.
        accumulation_steps: micro-batches an optimiser step.
    """
    rows = -(target * label_logprobs(logits, label_ids, over)).sum(-1)
    return _mean(rows, readable, n_rollouts, accumulation_steps)


def brier_term(
    logits: Tensor,
    label_ids: Tensor,
    gold: Tensor,
    *,
    over: Over = "vocabulary",
    readable: Tensor | None = None,
    n_rollouts: int | None = None,
    accumulation_steps: int = 1,
) -> Tensor:
    """Squared distance of the labels' probabilities to one-hot gold, differentiated through; a scalar to minimise.

    Proper as the logarithm is, and bounded: in [0, 2]. What lies outside the labels counts as one more option.
    Args as for `calibration_term`; gold: [B], option indices.
    """
    p = label_logprobs(logits, label_ids, over).exp()
    rows = (p - one_hot(gold, p.shape[-1])).square().sum(-1) + (1 - p.sum(-1)).square()
    return _mean(rows, readable, n_rollouts, accumulation_steps)


def group_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """GRPO's advantages [P, G] of rewards [P, G]: less the group's mean, over its standard deviation if `scale`."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + SCALE_EPSILON) if scale else centred


def sampled_policy_term(
    logprobs: Tensor, advantages: Tensor, *, n_rollouts: int | None = None, accumulation_steps: int = 1
) -> Tensor:
    """GRPO's loss on decisions sampled just now: log-probabilities [B] of what was sampled, advantages [B].

    On policy the importance ratio is one, and its gradient that of the log-probability.
    """
    ratio = (logprobs - logprobs.detach()).exp()
    return _mean(-advantages * ratio, None, n_rollouts, accumulation_steps)


def exact_policy_term(
    gold_logprobs: Tensor,
    advantage: Advantage,
    *,
    group: int,
    scale: bool = True,
    n_rollouts: int | None = None,
    accumulation_steps: int = 1,
) -> Tensor:
    """The mean of `sampled_policy_term` over all groups that could be drawn (`group_exact`), or plain -p(gold).

    Either has the gradient of a weighted log-likelihood of gold; see `policy_strength`. The value is not comparable
    with the sampled term's, whose value says nothing.

    Args:
        gold_logprobs: [B] with gradient, one row a *prompt*.
        advantage: `group_exact`, or `expected` for the gradient of the expected reward.
        group: G.
        scale: divide by the group's standard deviation (`group_exact` only).
        n_rollouts: prompts of the micro-batch; B if None.
        accumulation_steps: micro-batches an optimiser step.
    """
    strength = policy_strength(gold_logprobs.detach().exp(), advantage, group=group, scale=scale)
    return _mean(-strength * gold_logprobs, None, n_rollouts, accumulation_steps)


def policy_strength(p: Tensor, advantage: Advantage, *, group: int, scale: bool = True) -> Tensor:
    """h(p) of the policy gradient h(p) * d log p, where p is the probability of gold; elementwise.

    The reward is 1 for gold and 0 otherwise. Plain: h = p. In a group with m right decisions of G, the right ones'
    advantages add up to a(m) = m (G - m) / G, over the standard deviation if scaled, and the wrong ones' to -a(m); so
    h = E[a(m)] / (G (1 - p)) with m ~ Binomial(G, p).
    """
    if advantage == "expected":
        return p
    h = torch.zeros_like(p)
    for m in range(1, group):
        deviation = sqrt(m * (group - m) / (group * (group - 1))) + SCALE_EPSILON if scale else 1.0
        share = m * (group - m) / group**2 / deviation
        h += share * comb(group, m) * p**m * (1 - p) ** (group - m - 1)
    return h


def _clamp_strength(p: Tensor, k: int) -> Tensor:
    return ((k * p - 1) / CLAMP_FADE).clamp(0, 1)


def _mean(rows: Tensor, readable: Tensor | None, n_rollouts: int | None, accumulation_steps: int) -> Tensor:
    if readable is not None:
        rows = torch.where(readable, rows, 0)
    return rows.sum() / ((len(rows) if n_rollouts is None else n_rollouts) * accumulation_steps)
