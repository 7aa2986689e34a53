"""Weights: loaded for training, with an adapter where the recipe wants one, and merged with it afterwards."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, set_seed

from demur.training.recipe import Recipe, resolve


def model_place(recipe: Recipe, folder: Path) -> str:
    """A directory beside the recipe where there is one, else a name on the Hub."""
    path = resolve(recipe.model.path, folder)
    return str(path) if path.is_dir() else recipe.model.path


def load_weights(recipe: Recipe, folder: Path) -> Any:
    """The model that is trained, without its adapter. Seeds everything: adapters begin at random."""
    set_seed(recipe.seed)
    return AutoModelForCausalLM.from_pretrained(
        model_place(recipe, folder),
        revision=recipe.model.revision,
        dtype=getattr(torch, recipe.model.dtype),
        attn_implementation=recipe.model.attention,
    )


def adapter_config(recipe: Recipe) -> Any:
    """PEFT's settings of the recipe's adapter, None without one."""
    given = recipe.model.adapter
    if given is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=given.r,
        lora_alpha=given.alpha,
        lora_dropout=given.dropout,
        target_modules=list(given.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def merge(recipe: Recipe, folder: Path, adapter: Path, out: Path) -> None:
    """Writes the recipe's model with a trained adapter merged into its weights."""
    from peft import PeftModel

    PeftModel.from_pretrained(load_weights(recipe, folder), adapter).merge_and_unload().save_pretrained(out)
