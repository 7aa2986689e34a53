"""A calibration-aware reasoned step beside TRL's own on the same model, prompts and number of tokens."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from demur.training.data import Example
from demur.training.objectives import Objective
from demur.training.reasoned import ReasonedTrainer, RolloutPlan, as_dataset, decision_reward, trl_arguments
from demur.training.recipe import Recipe
from demur.training.trl import GRPOTrainer

DEMO, INPUTS = Path("models/demo"), Path("examples/data/voice_intent.jsonl")
BUDGET, PROMPTS, GROUP = 24, 1, 8
#: The paper's objective.
OBJECTIVE = Objective(policy_weight=0.0, target="paper", target_clamp=True, calibration_weight=0.001)


def model(tokenizer: Any) -> LlamaForCausalLM:
    """Two layers with the demo model's vocabulary, random weights: it never ends a completion by itself."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def trainers(out: Path, steps: int, arms: tuple[str, ...] = ("ours", "TRL")) -> list[Any]:
    """Trainers of the arms, in that order."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lines = [json.loads(line)["input"] for line in INPUTS.read_text().splitlines()]
    texts = [" ".join(lines[start : start + 6]) for start in range(0, 6 * 64, 6)]
    labels = tuple(tokenizer.encode(f" {letter}")[0] for letter in "ABCD")
    after = tuple(tokenizer.encode("\nAnswer:"))
    examples = [
        Example(
            hash=str(number),
            gold=number % 4,
            prompt=tuple(tokenizer.encode(text)[:48]),
            label_ids=labels,
            sequences=tuple((label,) for label in labels),
            after_thought=after,
            stop_ids=(tokenizer.eos_token_id,),
        )
        for number, text in enumerate(texts)
    ]
    recipe = Recipe.model_validate(
        {
            "name": "speed",
            "task": "none",
            "method": "grpo",
            "mode": "reasoned",
            "model": {"path": "none"},
            "data": {"train": {"path": "none"}},
            "rollout": {"kind": "forced", "group": GROUP, "max_tokens": BUDGET},
            "optimiser": {
                "steps": steps,
                "prompts": PROMPTS,
                "micro_batch": PROMPTS * GROUP,
                "gradient_checkpointing": False,
            },
            "log": {"to": [], "every": 10_000},
        }
    )
    tokens = BUDGET + len(after) + 2
    shared: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    made: dict[str, Callable[[], Any]] = {
        "ours": lambda: ReasonedTrainer(
            objective=OBJECTIVE,
            plan=RolloutPlan(forced=True, budget=BUDGET, answer="Answer:"),
            model=model(tokenizer),
            processing_class=tokenizer,
            reward_funcs=decision_reward,
            args=trl_arguments(recipe, out / "ours", **shared),
            train_dataset=as_dataset(examples),
        ),
        "TRL": lambda: GRPOTrainer(
            model=model(tokenizer),
            processing_class=tokenizer,
            reward_funcs=lambda completion_ids, **_: [float(ids[-1] % 2) for ids in completion_ids],
            args=trl_arguments(
                recipe,
                out / "trl",
                **shared,
                max_completion_length=tokens,
                generation_kwargs={"min_new_tokens": tokens},
            ),
            train_dataset=Dataset.from_list([{"prompt": tokenizer.decode(example.prompt)} for example in examples]),
        ),
    }
    return [made[arm]() for arm in arms]


def peak_memory(arm: str) -> tuple[float, float]:
    """Peak resident MB of a process of its own that takes four steps of one arm, and how much of it training added."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", "--memory-of", arm], capture_output=True, text=True, check=True
    )
    peak, before = json.loads(done.stdout.splitlines()[-1])
    return peak, peak - before


def print_memory(arm: str, out: Path) -> None:
    """What the process of `peak_memory` does."""
    (trainer,) = trainers(out, 4, (arm,))
    before = _peak()
    trainer.train()
    print(json.dumps([_peak(), before]))


def _peak() -> float:
    """MB. Not `ru_maxrss`: a process begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
