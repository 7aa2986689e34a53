"""A model of 2 layers and 40 words, prompts for it, and trainers on them: what a training test needs in seconds."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demur.training.data import Example
from demur.training.decisions import find_decision
from demur.training.forward import ForwardTrainer, forward_arguments
from demur.training.objectives import Objective
from demur.training.reasoned import ReasonedTrainer, RolloutPlan, as_dataset, trl_arguments
from demur.training.recipe import Recipe

WORDS = ["<pad>", "<s>", "</s>", "so", "Answer:", *"ABC", *(f"w{i}" for i in range(32))]
#: Every label is a decision, wherever it stands: random models never write an answer prefix.
ANYWHERE = RolloutPlan(forced=False, budget=8, answer="")
LABELS = tuple(WORDS.index(letter) for letter in "ABC")


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS[8:], k=draw.randint(2, 5))) for _ in range(count)]


def examples(count: int = 100) -> list[Example]:
    encode = tokenizer()
    return [
        Example(
            hash=str(number),
            gold=number % 3,
            prompt=tuple(encode(text).input_ids),
            label_ids=LABELS,
            sequences=tuple((label,) for label in LABELS),
            after_thought=(WORDS.index("so"), WORDS.index("Answer:")),
            stop_ids=(2,),
        )
        for number, text in enumerate(texts(count))
    ]


def reward(completion_ids: list[list[int]], sequences: list[Any], gold: list[int], **_: Any) -> list[float]:
    """Right or wrong, from the completion alone: TRL's own trainer knows nothing of decisions."""
    decode = partial(tokenizer().decode, skip_special_tokens=True)
    found = [find_decision(ids, labels, "", decode) for ids, labels in zip(completion_ids, sequences, strict=True)]
    return [float(f is not None and f.option == right) for f, right in zip(found, gold, strict=True)]


def recipe(**changes: Any) -> Recipe:
    size = 2 if changes.get("mode") == "direct" else 8
    optimiser = {
        "learning_rate": 1e-2,
        "steps": 4,
        "prompts": 4,
        "micro_batch": size,
        "gradient_checkpointing": False,
    }
    rollout = {"group": 4, "max_tokens": 8}
    values: dict[str, Any] = {
        "name": "tiny",
        "task": "none",
        "method": "grpo",
        "mode": "reasoned",
        "model": {"path": "none"},
        "data": {"train": {"path": "none"}},
        "log": {"to": []},
        "saves": {"every": 1000},
    }
    values["optimiser"] = optimiser | changes.pop("optimiser", {})
    values["rollout"] = rollout | changes.pop("rollout", {})
    return Recipe.model_validate(values | changes)


def trainer(
    out: Path,
    objective: Objective | None = None,
    plan: RolloutPlan = ANYWHERE,
    rows: list[Example] | None = None,
    reward_funcs: Any = reward,
    **changes: Any,
) -> ReasonedTrainer:
    return ReasonedTrainer(
        objective=objective or Objective(),
        plan=plan,
        model=model(),
        processing_class=tokenizer(),
        reward_funcs=reward_funcs,
        args=trl_arguments(recipe(**changes), out, use_cpu=True, disable_tqdm=True),
        train_dataset=as_dataset(rows or examples()),
    )


def direct_trainer(out: Path, objective: Objective, rows: list[Example], **changes: Any) -> ForwardTrainer:
    """Direct training of an adapter with dropout: its masks are random too."""
    settings = recipe(mode="direct", **changes)
    adapter = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return ForwardTrainer(
        model=get_peft_model(model(), adapter),
        args=forward_arguments(settings, out, use_cpu=True, disable_tqdm=True),
        train_dataset=[replace(row, after_thought=()) for row in rows],
        pad_id=0,
        objective=objective,
        keep=settings.saves.keep,
    )


def weights(of: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in of.model.state_dict().items()}
