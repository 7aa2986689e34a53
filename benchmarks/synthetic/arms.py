"""What is compared, and how one arm is trained and measured."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.synthetic.task import TASKS, Evidence, FloatArray
from demur.calibration import calibration_report
from demur.training.direct import DirectSettings, DirectTrainer, OwnCorrectTrainer, decision_probabilities
from demur.training.fixed_points import fixed_point
from demur.training.objectives import Objective

#: Weight of the calibration or Brier term beside GRPO, as in the sketch that this follows; chosen before any run.
WEIGHT = 0.5
#: RL, then a light SFT on the model's own correct decisions.
OWN_CORRECT = "GRPO, then own correct"

_ALONE = {"policy_weight": 0.0, "advantage": "expected", "calibration_weight": 1.0}
_GRPO = {"advantage": "group_exact"}
ARMS = {
    "SFT = gold alone": Objective(**_ALONE, target="gold"),  # type: ignore[arg-type]
    "Brier alone": Objective(policy_weight=0, brier_weight=1.0),
    "paper alone": Objective(**_ALONE, target="paper"),  # type: ignore[arg-type]
    "others alone": Objective(**_ALONE, target="others"),  # type: ignore[arg-type]
    "paper alone, clamped": Objective(**_ALONE, target="paper", target_clamp=True),  # type: ignore[arg-type]
    "paper alone, argmax": Objective(**_ALONE, target="paper", target_decision="argmax"),  # type: ignore[arg-type]
    "others alone, argmax": Objective(**_ALONE, target="others", target_decision="argmax"),  # type: ignore[arg-type]
    "expected reward": Objective(advantage="expected"),
    "GRPO": Objective(**_GRPO),  # type: ignore[arg-type]
    "GRPO, sampled": Objective(),
    "GRPO + paper": Objective(**_GRPO, target="paper", calibration_weight=WEIGHT),  # type: ignore[arg-type]
    "GRPO + paper, sampled": Objective(target="paper", calibration_weight=WEIGHT),
    "GRPO + others": Objective(**_GRPO, target="others", calibration_weight=WEIGHT),  # type: ignore[arg-type]
    "GRPO + gold": Objective(**_GRPO, target="gold", calibration_weight=WEIGHT),  # type: ignore[arg-type]
    "GRPO + Brier": Objective(**_GRPO, brier_weight=WEIGHT),  # type: ignore[arg-type]
    OWN_CORRECT: Objective(**_GRPO),  # type: ignore[arg-type]
}


@dataclass(frozen=True)
class Budget:
    """How long each arm is trained, the same for all."""

    steps: int = 400
    prompts: int = 128
    learning_rate: float = 5e-3
    own_correct_steps: int = 40
    held_out: int = 10_000


@dataclass(frozen=True)
class Result:
    """One trained arm. `to_posterior` and `to_fixed_point` are mean total variations, `kl` is KL(pi || p) in nats.

    `curve` holds [true top posterior, the model's probability of that option, its fixed point's] by decile.
    """

    task: str
    arm: str
    seed: int
    steps: int
    accuracy: float
    ece: float
    ece_noise: float
    ece_equal_count: float
    nll: float
    brier: float
    mean_confidence: float
    kl: float
    to_posterior: float
    to_fixed_point: float
    curve: list[list[float]]
    seconds: float


def train_arm(task_name: str, arm: str, seed: int, budget: Budget) -> Result:
    """Train a new decoder on fresh prompts and measure it on held-out ones, the same for all arms."""
    started = time.perf_counter()
    task, objective = TASKS[task_name], ARMS[arm]
    symbols, gold = task.draw(budget.held_out, np.random.default_rng(10_000 + seed))
    held_out = [task.batch(symbols, gold)]
    pi = task.posterior(symbols)
    model = task.decoder(seed)
    settings = DirectSettings(budget.steps, learning_rate=budget.learning_rate, seed=seed, log_every=budget.steps)
    batches = task.batches(budget.prompts, seed)
    for _ in DirectTrainer(model, objective, settings, batches).run():
        pass
    goal = settled(objective, pi)
    if arm == OWN_CORRECT:
        goal = decision_probabilities(model, held_out).double().numpy() * pi
        goal /= goal.sum(axis=1, keepdims=True)
        light = DirectSettings(budget.own_correct_steps, learning_rate=budget.learning_rate / 5, seed=seed)
        for _ in OwnCorrectTrainer(model, light, batches).run():
            pass
    p = decision_probabilities(model, held_out).double().numpy()
    report = calibration_report(p, gold, n_simulations=100)
    return Result(
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
    )


def settled(objective: Objective, pi: FloatArray) -> FloatArray:
    """The objective's fixed point of each row; prompts with the same evidence are solved once."""
    distinct, back = np.unique(pi.round(12), axis=0, return_inverse=True)
    return fixed_point(objective, distinct)[back.ravel()]


def total_variation(p: FloatArray, q: FloatArray) -> float:
    """Mean over rows."""
    return float(0.5 * np.abs(p - q).sum(axis=1).mean())


def curve(p: FloatArray, goal: FloatArray, pi: FloatArray) -> list[list[float]]:
    """What becomes of the truly best option's probability, by decile of its posterior."""
    rows, best = np.arange(len(pi)), pi.argmax(axis=1)
    order = np.argsort(pi[rows, best], kind="stable")
    columns = np.stack([q[rows, best] for q in (pi, p, goal)], axis=1)
    return [part.mean(axis=0).round(4).tolist() for part in np.array_split(columns[order], 10)]


def bayes_accuracy(task: Evidence, n: int = 100_000) -> float:
    """The best accuracy that anyone can have."""
    return float(task.posterior(task.draw(n, np.random.default_rng(0))[0]).max(axis=1).mean())


torch.set_num_threads(1)
