"""What a recipe says to any transformers Trainer: optimiser, batches, checkpoints and logs."""

from pathlib import Path
from typing import Any

import torch

from demur.training.recipe import Recipe


def shared_arguments(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Arguments of every trainer, with whatever changes a result pinned."""
    optimiser = recipe.optimiser
    return {
        "output_dir": str(out),
        # Else accelerate takes many processes without GPUs for as many single runs.
        "use_cpu": not torch.accelerator.is_available(),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": recipe.model.dtype == "bfloat16",
        "gradient_checkpointing": optimiser.gradient_checkpointing,
        "learning_rate": optimiser.learning_rate,
        "lr_scheduler_type": optimiser.schedule,
        "warmup_steps": optimiser.warmup_steps,
        "weight_decay": optimiser.weight_decay,
        "adam_beta1": optimiser.beta1,
        "adam_beta2": optimiser.beta2,
        "adam_epsilon": optimiser.epsilon,
        "max_grad_norm": optimiser.max_grad_norm,
        "optim": "adamw_torch",
        "num_train_epochs": optimiser.epochs,
        "max_steps": optimiser.steps or -1,
        "per_device_train_batch_size": optimiser.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "save_steps": recipe.saves.every,
        "save_total_limit": None,
        "save_only_model": False,
        "logging_steps": recipe.log.every,
        "report_to": list(recipe.log.to),
    }
