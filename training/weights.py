"""Weights: loaded for training, with an adapter where the recipe wants one, and merged with it afterwards."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, set_seed

from demur.training.errors import TrainingError
from demur.training.recipe import Recipe, resolve


def model_place(recipe: Recipe, folder: Path) -> str:
    """A directory, from the recipe's folder or the working directory, else a name on the Hub. Raises TrainingError."""
    given, path = recipe.model.path, resolve(recipe.model.path, folder)
    for found in (path, Path(given)):
        if found.is_dir():
            return str(found)
    if Path(given).is_absolute() or given.startswith((".", "~")) or given.count("/") > 1:
        raise TrainingError(f"model.path: {path.resolve()} is no directory, and {given} no name on the Hub")
    return given


def load_weights(recipe: Recipe, folder: Path, dtype: torch.dtype | None = None) -> Any:
    """The model that is trained, without its adapter, in another dtype than the recipe's where one is given.

    Seeds everything: adapters begin at random.
    """
    set_seed(recipe.seed)
    return AutoModelForCausalLM.from_pretrained(
        model_place(recipe, folder),
        revision=recipe.model.revision,
        dtype=dtype or getattr(torch, recipe.model.dtype),
        attn_implementation=recipe.model.attention,
    )


def adapter_config(recipe: Recipe, model: Any) -> Any:
    """PEFT's settings of the recipe's adapter for a model, None without one. Raises TrainingError."""
    given = recipe.model.adapter
    if given is None:
        return None
    from peft import LoraConfig

    layers: int = model.config.num_hidden_layers
    upper = given.upper_layers
    if upper is not None and upper > layers:
        raise TrainingError(f"model.adapter.upper_layers is {upper}, and {recipe.model.path} has {layers} layers")
    # PEFT passes over a name that no layer has, as long as another one is found.
    places = [f".{name}" for name, _ in model.named_modules()]
    for target in given.targets:
        if not any(place.endswith(f".{target}") for place in places):
            raise TrainingError(f"model.adapter.targets: {recipe.model.path} has no layer called {target}")
    return LoraConfig(
        r=given.r,
        lora_alpha=given.alpha,
        lora_dropout=given.dropout,
        target_modules=list(given.targets),
        layers_to_transform=None if upper is None else list(range(layers - upper, layers)),
        bias="none",
        task_type="CAUSAL_LM",
    )


def merge(recipe: Recipe, folder: Path, adapter: Path, out: Path) -> None:
    """Writes the recipe's model with a trained adapter merged into its weights.

    In float32 whatever it was trained in: most of what an adapter adds is less than bfloat16 can tell apart.
    """
    from peft import PeftModel

    model = load_weights(recipe, folder, torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
