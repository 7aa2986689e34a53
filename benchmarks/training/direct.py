"""A direct step at G = 8 beside TRL's GRPO on one-token completions of the same prompts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.synthetic.tally import Tally
from benchmarks.synthetic.task import Evidence
from benchmarks.training.turns import Pairs, in_turn
from demur.training.direct import DirectSettings, DirectTrainer, decision_probabilities
from demur.training.forward import ForwardTrainer, forward_arguments
from demur.training.objectives import Objective
from demur.training.reasoned import trl_arguments
from demur.training.recipe import Recipe
from demur.training.trl import GRPOTrainer

#: Long prompts, so that a step is computation and not the trainers' housekeeping.
TASK = Evidence((0.6, 0.55), length=64)
PROMPTS, GROUP, HELD_OUT = 16, 8, 2000
GRPO = Objective(group=GROUP)


@dataclass(frozen=True)
class Direct:
    """Steps of both arms, pair by pair, and their accuracies on held-out prompts; `best` anyone's."""

    pairs: Pairs
    accuracy: float
    their_accuracy: float
    start: float
    best: float


def direct_against_trl(out: Path, steps: int, seed: int) -> Direct:
    """Both arms from one start, the same prompts in the same number of steps."""
    tally = Tally(TASK)
    tokenizer = tally.tokenizer()
    symbols, gold = TASK.draw(steps * PROMPTS, np.random.default_rng(1000 + seed))
    rows = [replace(example, after_thought=()) for example in tally.examples(symbols, gold)]
    start = _start(seed)
    ours, theirs = _decoder(seed), _decoder(seed)
    for model in (ours, theirs):
        model.load_state_dict(start.state_dict())
    shared: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    first = ForwardTrainer(
        model=ours,
        args=forward_arguments(_recipe("direct", steps, seed), out / "ours", **shared),
        train_dataset=rows,
        pad_id=tally.pad,
        objective=GRPO,
    )
    labels = rows[0].label_ids
    second = GRPOTrainer(
        model=theirs,
        processing_class=tokenizer,
        reward_funcs=lambda completion_ids, gold, **_: [
            float(ids[0] == labels[right]) for ids, right in zip(completion_ids, gold, strict=True)
        ],
        args=trl_arguments(_recipe("reasoned", steps, seed), out / "trl", **shared, max_completion_length=1),
        train_dataset=Dataset.from_list([{"prompt": tokenizer.decode(row.prompt), "gold": row.gold} for row in rows]),
    )
    pairs = in_turn(first, second)
    symbols, gold = TASK.draw(HELD_OUT, np.random.default_rng(seed))
    return Direct(
        pairs=pairs,
        accuracy=_accuracy(ours, symbols, gold),
        their_accuracy=_accuracy(theirs, symbols, gold),
        start=_accuracy(start, symbols, gold),
        best=float((TASK.posterior(symbols).argmax(axis=1) == gold).mean()),
    )


def _decoder(seed: int) -> Any:
    return Tally(TASK).decoder(seed, width=96, spread=0.05, context=128)


def _start(seed: int) -> Any:
    """A decoder after a short SFT: it answers with labels, and is far from done."""
    model = _decoder(seed)
    objective = Objective(policy_weight=0, target="gold", calibration_weight=1.0)
    settings = DirectSettings(steps=30, learning_rate=2e-3, seed=seed)
    for _ in DirectTrainer(model, objective, settings, TASK.batches(32, seed)).run():
        pass
    return model


def _accuracy(model: Any, symbols: Any, gold: Any) -> float:
    parts = [slice(start, start + 500) for start in range(0, len(gold), 500)]
    p = decision_probabilities(model, [TASK.batch(symbols[part], gold[part]) for part in parts])
    return float((p.argmax(-1).numpy() == gold).mean())


def _recipe(mode: str, steps: int, seed: int) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "speed",
            "task": "none",
            "method": "grpo",
            "mode": mode,
            "seed": seed,
            "model": {"path": "none"},
            "data": {"train": {"path": "none"}},
            "rollout": {"group": GROUP, "max_tokens": 1},
            "optimiser": {
                "learning_rate": 5e-4,
                "steps": steps,
                "prompts": PROMPTS,
                "micro_batch": PROMPTS * (GROUP if mode == "reasoned" else 1),
                "gradient_checkpointing": False,
            },
            "log": {"to": [], "every": 10_000},
        }
    )
