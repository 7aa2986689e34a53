"""The reasoned half: arms that count aloud before they decide, trained by the bundled reasoned trainer."""

import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.synthetic.arms import OWN_CORRECT, Result, curve, settled, total_variation
from benchmarks.synthetic.tally import Tally
from benchmarks.synthetic.task import TASKS
from demur.calibration import calibration_report
from demur.training.data import Example
from demur.training.direct import DirectSettings
from demur.training.extraction import Diagnosis, Swap, diagnose
from demur.training.fixed_points import FloatArray
from demur.training.objectives import Objective
from demur.training.reasoned import ReasonedTrainer, RolloutPlan, as_dataset, decision_reward, trl_arguments
from demur.training.recipe import Recipe
from demur.training.rollouts import Rollout, read_decisions, roll_out

#: Completions have ten tokens: a lambda that, times their length, is the weight of the direct half.
LAMBDA = 0.05
#: Share of the labels that the common start learns from which are drawn evenly: it ranks well and is underconfident.
NOISE = 0.5
#: From examples and pi to where an objective leaves the decisions, [n, K].
Rest = Callable[[list[Example], FloatArray], FloatArray]
START, SFT = "common start", "SFT, thought and decision"

#: The paper's way unless the name says otherwise: the policy loss moves the thought only.
_TERM = {"policy_weight": 0.0, "calibration_weight": LAMBDA}
REASONED_ARMS: dict[str, Objective | None] = {
    START: None,
    SFT: None,
    "GRPO": Objective(),
    OWN_CORRECT: Objective(),
    "paper, clamped": Objective(**_TERM, target="paper", target_clamp=True),  # type: ignore[arg-type]
    "paper": Objective(**_TERM, target="paper"),  # type: ignore[arg-type]
    "others": Objective(**_TERM, target="others"),  # type: ignore[arg-type]
    "gold": Objective(**_TERM, target="gold"),  # type: ignore[arg-type]
    "paper, argmax": Objective(**_TERM, target="paper", target_decision="argmax"),  # type: ignore[arg-type]
    "others, argmax": Objective(**_TERM, target="others", target_decision="argmax"),  # type: ignore[arg-type]
    "Brier": Objective(policy_weight=0.0, brier_weight=LAMBDA),
}


@dataclass(frozen=True)
class ReasonedBudget:
    """How long each arm is trained, the same for all: `start_steps` in common, then `steps` of 128 rollouts."""

    start_steps: int = 200
    steps: int = 150
    prompts: int = 16
    group: int = 8
    learning_rate: float = 5e-4
    own_correct_steps: int = 20
    held_out: int = 3000
    diagnosed: int = 150


@dataclass(frozen=True)
class ReasonedResult(Result):
    """One trained arm, read behind one drawn thought a prompt; see `Result`.

    `drawn_accuracy`: of decisions drawn at temperature 1. `tally`: share of thoughts that are the true tally.
    `extraction`: what becomes of decisions whose thought is replaced.
    """

    drawn_accuracy: float
    tally: float
    extraction: Diagnosis

    @classmethod
    def of(cls, row: dict[str, Any]) -> "ReasonedResult":
        """From what `asdict` made."""
        found = row["extraction"]
        swaps = {name: Swap(**swap) for name, swap in found["swaps"].items()}
        return cls(**row | {"extraction": Diagnosis(**found | {"swaps": swaps})})


def train_reasoned(task_name: str, arm: str, seed: int, budget: ReasonedBudget) -> ReasonedResult:
    """Train one arm from the start that all share, and measure it on held-out prompts, the same for all arms."""
    started = time.perf_counter()
    tally = Tally(TASKS[task_name])
    model, rest = trained(tally, arm, seed, budget)
    symbols, gold = tally.evidence.draw(budget.held_out, np.random.default_rng(10_000 + seed))
    examples, pi = tally.examples(symbols, gold), tally.evidence.posterior(symbols)
    found = thoughts_of(model, tally, examples, seed)
    raw = np.array([rollout.probabilities for rollout in found])
    p = raw / raw.sum(axis=1, keepdims=True)
    goal = rest(examples, pi)
    report = calibration_report(p, gold, n_simulations=100)
    truth = tally.thoughts(symbols)
    return ReasonedResult(
        task=task_name,
        arm=arm,
        seed=seed,
        steps=budget.steps,
        accuracy=report.accuracy,
        ece=report.ece_uniform_15,
        ece_noise=report.ece_noise.mean,
        ece_equal_count=report.ece_quantile_15,
        nll=report.nll,
        brier=report.brier,
        mean_confidence=report.mean_confidence,
        kl=float((pi * np.log(pi / np.maximum(p, 1e-30))).sum(axis=1).mean()),
        to_posterior=total_variation(p, pi),
        to_fixed_point=total_variation(p, goal),
        curve=curve(p, goal, pi),
        seconds=time.perf_counter() - started,
        drawn_accuracy=float(np.mean([r.option == right for r, right in zip(found, gold, strict=True)])),
        tally=float(np.mean([r.thought == tuple(row) for r, row in zip(found, truth.tolist(), strict=True)])),
        extraction=extraction_of(model, tally, examples[: budget.diagnosed], seed),
    )


def extraction_of(model: Any, tally: Tally, examples: list[Example], seed: int, group: int = 8) -> Diagnosis:
    """The extraction diagnosis of a trained decoder."""
    drawn = thoughts_of(model, tally, examples, seed, group)
    grouped = [drawn[start : start + group] for start in range(0, len(drawn), group)]
    return diagnose(
        examples, grouped, lambda hosts, thoughts: read_decisions(model, hosts, thoughts, pad_id=tally.pad, batch=500)
    )


def trained(tally: Tally, arm: str, seed: int, budget: ReasonedBudget) -> tuple[Any, Rest]:
    """The arm's model, and where its objective rests."""
    objective = REASONED_ARMS[arm]
    if arm == START:
        return common_start(tally, seed, budget), lambda _, pi: (1 - NOISE) * pi + NOISE / pi.shape[1]
    if objective is not None:
        model = deepcopy(reinforced(tally, objective, seed, budget))
        if arm != OWN_CORRECT:
            return model, lambda _, pi: settled(_alone(objective), pi)
        frozen = deepcopy(model)
        light = DirectSettings(budget.own_correct_steps, learning_rate=budget.learning_rate / 5)
        teach(model, own_correct(frozen, tally, budget, seed), tally, light)

        def rest(examples: list[Example], pi: FloatArray) -> FloatArray:
            goal: FloatArray = np.array([r.probabilities for r in thoughts_of(frozen, tally, examples, seed)]) * pi
            goal /= goal.sum(axis=1, keepdims=True)
            return goal

        return model, rest
    model = deepcopy(common_start(tally, seed, budget))
    taught = tally.taught(budget.prompts * budget.group, np.random.default_rng(30_000 + seed), 0.0)
    teach(model, taught, tally, DirectSettings(budget.steps, learning_rate=budget.learning_rate))
    return model, lambda _, pi: pi


def _alone(objective: Objective) -> Objective:
    """The objective as the decision meets it: without a policy loss there, a term's weight says nothing about where."""
    if objective.policy_weight > 0:
        return objective
    whole = {"calibration_weight": 1.0} if objective.target else {"brier_weight": 1.0}
    return replace(objective, **whole)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def common_start(tally: Tally, seed: int, budget: ReasonedBudget) -> Any:
    """A decoder that counts, and decides as if a share of the labels were noise. Not to be changed."""
    model = tally.decoder(seed)
    taught = tally.taught(128, np.random.default_rng(seed), NOISE)
    teach(model, taught, tally, DirectSettings(budget.start_steps, learning_rate=5e-3))
    return model


def teach(model: Any, sequences: Iterator[torch.Tensor], tally: Tally, settings: DirectSettings) -> None:
    """SFT on thought and decision: the mean over sequences of the thought's summed loss plus the decision's."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    length = tally.evidence.length
    for step in range(settings.steps):
        ids = next(sequences)
        logits = model(input_ids=ids, use_cache=False).logits[:, length:-1]
        wanted = ids[:, length + 1 :]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        # The answer prefix is set, never written.
        written = losses.sum() - losses[:, -2].sum()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        (written / len(ids)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


@lru_cache(maxsize=1)
def reinforced(tally: Tally, objective: Objective, seed: int, budget: ReasonedBudget) -> Any:
    """The common start after the bundled reasoned trainer, on fresh prompts that are met once. Not to be changed."""
    model = deepcopy(common_start(tally, seed, budget))
    symbols, gold = tally.evidence.draw(budget.steps * budget.prompts, np.random.default_rng(20_000 + seed))
    rollouts = budget.prompts * budget.group
    recipe = Recipe.model_validate(
        {
            "name": "synthetic",
            "task": "none",
            "method": "grpo",
            "mode": "reasoned",
            "seed": seed,
            "model": {"path": "none"},
            "data": {"train": {"path": "none"}},
            "rollout": {"kind": "forced", "group": budget.group, "max_tokens": tally.evidence.length},
            "optimiser": {
                "learning_rate": budget.learning_rate,
                "schedule": "cosine",
                "warmup_steps": 10,
                "steps": budget.steps,
                "prompts": budget.prompts,
                "micro_batch": rollouts,
                "gradient_checkpointing": False,
            },
            "log": {"to": [], "every": budget.steps},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        ReasonedTrainer(
            objective=objective,
            plan=RolloutPlan(forced=True, budget=tally.evidence.length, answer=""),
            model=model,
            processing_class=tally.tokenizer(),
            reward_funcs=decision_reward,
            args=trl_arguments(recipe, Path(folder), use_cpu=True, disable_tqdm=True, save_strategy="no"),
            train_dataset=as_dataset(tally.examples(symbols, gold)),
        ).train()
    del model.forward  # the trainer's
    return model


def own_correct(frozen: Any, tally: Tally, budget: ReasonedBudget, seed: int) -> Iterator[torch.Tensor]:
    """Fresh rollouts of a frozen model, those that decided right."""
    rng = np.random.default_rng(30_000 + seed)
    while True:
        symbols, gold = tally.evidence.draw(budget.prompts * budget.group, rng)
        found = thoughts_of(frozen, tally, tally.examples(symbols, gold), int(rng.integers(1 << 30)))
        length = tally.evidence.length
        right = [r.option == g and len(r.thought) == length for r, g in zip(found, gold, strict=True)]
        thoughts = np.array([r.thought for r, kept in zip(found, right, strict=True) if kept])
        yield tally.sequences(symbols[right], thoughts, gold[right])


def thoughts_of(model: Any, tally: Tally, examples: list[Example], seed: int, group: int = 1) -> list[Rollout]:
    """`group` rollouts of every example, one after another."""
    torch.manual_seed(seed)
    found = roll_out(
        model,
        examples,
        budget=tally.evidence.length,
        group=group,
        pad_id=tally.pad,
        end_id=tally.end,
        batch=500,
    )
    return [rollout for rollouts in found for rollout in rollouts]
