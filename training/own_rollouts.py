"""What `own_correct` learns in reasoned mode: the right ones among rollouts of the model that training starts from.

They are drawn once, before the first step, and kept beside the checkpoints, so that a run goes on with the same ones.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from demur.training.data import Example
from demur.training.errors import TrainingError
from demur.training.processes import device
from demur.training.recipe import Recipe
from demur.training.rollouts import roll_out
from demur.training.weights import load_weights

#: Beside a run's checkpoints: the thoughts that decided right, and what they were drawn from.
ROLLOUTS = "own_rollouts.json"
#: Rollouts at once.
_BATCH = 64


def own_correct_rows(
    recipe: Recipe, folder: Path, examples: Sequence[Example], tokenizer: Any, out: Path, made_from: Mapping[str, Any]
) -> tuple[Example, ...]:
    """An example for each rollout that decided right, with its thought; several of a row, or none.

    A thought that was cut does not teach where thoughts end. Raises TrainingError where no rollout decided right.

    Args:
        recipe, folder: whose model, seed and `rollout`.
        examples: training rows without thoughts.
        tokenizer: of the model.
        out: folder that keeps the rollouts.
        made_from: a run's provenance; rollouts from another recipe, task or data are drawn anew.
    """
    source = {key: made_from[key] for key in ("recipe_sha256", "task", "data")}
    path = out / ROLLOUTS
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if kept is None or kept["made_from"] != source:
        kept = {"made_from": source, "right": _draw(recipe, folder, examples, tokenizer)}
        _write(path, kept)
    right: list[list[list[int]]] = kept["right"]
    without, count = sum(not thoughts for thoughts in right), sum(map(len, right))
    drawn = len(examples) * recipe.rollout.group
    click.echo(f"own rollouts: {count} of {drawn} decided right; {without} of {len(examples)} rows have none", err=True)
    if not count:
        raise TrainingError(
            f"none of {drawn} rollouts decided right, so `own_correct` has nothing to learn; start from a model that "
            "decides better than that, or draw more with `rollout.group`"
        )
    budget = recipe.rollout.max_tokens
    return tuple(
        replace(example, thought=tuple(thought), stop_ids=example.stop_ids if len(thought) < budget else ())
        for example, thoughts in zip(examples, right, strict=True)
        for thought in thoughts
    )


def _draw(recipe: Recipe, folder: Path, examples: Sequence[Example], tokenizer: Any) -> list[list[list[int]]]:
    """By example, the thoughts of its rollouts that decided right. Seeded as the run is."""
    model = load_weights(recipe, folder).to(device())
    given = recipe.rollout
    size = max(1, _BATCH // given.group)
    found: list[list[list[int]]] = []
    for start in tqdm(range(0, len(examples), size), disable=not sys.stderr.isatty()):
        rows = examples[start : start + size]
        drawn = roll_out(
            model,
            rows,
            budget=given.max_tokens,
            group=given.group,
            temperature=given.temperature,
            pad_id=tokenizer.pad_token_id,
            end_id=tokenizer.eos_token_id,
            batch=_BATCH,
        )
        for example, rollouts in zip(rows, drawn, strict=True):
            found.append([list(rollout.thought) for rollout in rollouts if rollout.option == example.gold])
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(".writing")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
