"""A recipe made ready and run: model, data and trainer, checked before anything is spent."""

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demur.decision.prompt import PromptBuilder, split_answer
from demur.decision.rowhash import TRAINING_ROWS
from demur.decision.task import Task
from demur.decision.taskfile import load_task
from demur.decision.wording import ANSWER_PREFIX
from demur.training.checkpoints import newest
from demur.training.data import RunData, load_data
from demur.training.errors import TrainingError
from demur.training.objectives import Objective, label_logprobs
from demur.training.reasoned import ReasonedTrainer, RolloutPlan, as_dataset, decision_reward, trl_arguments
from demur.training.recipe import Recipe, resolve

#: Beside every run's checkpoints: what it was made from.
PROVENANCE = "provenance.json"
#: Under a run's folder: the trained model.
MODEL = "model"

_LIBRARIES = ("demur", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe with its task, tokenizer and data, all checked."""

    recipe: Recipe
    folder: Path
    task: Task
    tokenizer: Any
    data: RunData


def prepare(recipe: Recipe, folder: Path) -> Prepared:
    """Reads everything but the weights. Raises DecisionError or TrainingError for whatever would stop it later."""
    if (recipe.method, recipe.mode) != ("grpo", "reasoned"):
        raise TrainingError(f"`{recipe.method}` in {recipe.mode} mode cannot be run from a recipe yet")
    task = load_task(resolve(recipe.task, folder))
    place = _model_place(recipe, folder)
    tokenizer = AutoTokenizer.from_pretrained(place, revision=recipe.model.revision)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Prepared(recipe, folder, task, tokenizer, load_data(recipe, folder, task, PromptBuilder(tokenizer)))


def trainer_of(prepared: Prepared, out: Path, **arguments: Any) -> ReasonedTrainer:
    """The trainer of a prepared recipe, its weights loaded."""
    recipe, adapter = prepared.recipe, None
    if recipe.model.adapter is not None:
        from peft import LoraConfig

        given = recipe.model.adapter
        adapter = LoraConfig(
            r=given.r,
            lora_alpha=given.alpha,
            lora_dropout=given.dropout,
            target_modules=list(given.targets),
            bias="none",
            task_type="CAUSAL_LM",
        )
    model = AutoModelForCausalLM.from_pretrained(
        _model_place(recipe, prepared.folder),
        revision=recipe.model.revision,
        dtype=getattr(torch, recipe.model.dtype),
        attn_implementation=recipe.model.attention,
    )
    layout = prepared.task.spec.layout
    answer, _ = split_answer(ANSWER_PREFIX if layout.answer_prefix is None else layout.answer_prefix)
    return ReasonedTrainer(
        objective=objective_of(recipe),
        plan=RolloutPlan(recipe.rollout.kind == "forced", recipe.rollout.max_tokens, answer.strip()),
        keep=recipe.saves.keep,
        model=model,
        peft_config=adapter,
        processing_class=prepared.tokenizer,
        reward_funcs=decision_reward,
        args=trl_arguments(recipe, out, **arguments),
        train_dataset=as_dataset(prepared.data.train),
    )


def objective_of(recipe: Recipe) -> Objective:
    """A recipe's objective as the loss functions take it."""
    given = recipe.objective
    return Objective(
        policy_weight=float(given.policy_loss_on_decision),
        advantage=given.advantage,
        group=recipe.rollout.group,
        scale_rewards=recipe.grpo.scale_rewards == "group",
        target=given.target,
        target_decision=given.target_decision,
        target_clamp=given.target_clamp,
        calibration_weight=given.lambda_,
        brier_weight=given.brier,
        over=given.over,
    )


def train(prepared: Prepared, out: Path, *, resume: bool, **arguments: Any) -> Path:
    """Runs a prepared recipe and returns the trained model's directory.

    Raises TrainingError where the folder holds a run and `resume` was not asked for, or where the recipe or the data
    are not those that the run began with.
    """
    found = newest(out)
    made_from = provenance(prepared)
    if (found or (out / MODEL).exists()) and not resume:
        raise TrainingError(f"{out} holds a run already; go on with --resume, or give another --out")
    noted = out / PROVENANCE
    if found is not None and noted.is_file():
        before = json.loads(noted.read_text(encoding="utf-8"))
        for what in ("recipe", "data", "task"):
            if before[what] != made_from[what]:
                raise TrainingError(f"the {what} of {out} changed since its run began; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    trainer = trainer_of(prepared, out, **arguments)
    trainer.train(resume_from_checkpoint=None if found is None else str(found))
    trainer.save_model(str(out / MODEL))
    prepared.tokenizer.save_pretrained(out / MODEL)
    hashes = sorted({example.hash for example in prepared.data.train})
    (out / MODEL / TRAINING_ROWS).write_text("\n".join(hashes) + "\n", encoding="ascii")
    (out / MODEL / PROVENANCE).write_text(noted.read_text(encoding="utf-8"), encoding="utf-8")
    return out / MODEL


def dry_run(prepared: Prepared, out: Path) -> list[str]:
    """What a run would do, a line each: rows, labels, a prompt's length, memory, and the first batch's losses."""
    recipe, data = prepared.recipe, prepared.data
    trainer = trainer_of(prepared, out, report_to=[])
    parameters = sum(value.numel() for value in trainer.model.parameters())
    trained = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    longest = max(len(example.prompt) for example in data.train)
    size = torch.finfo(getattr(torch, recipe.model.dtype)).bits // 8
    # Weights, and for what is trained its gradient, AdamW's two moments in float32 and the master copy.
    gibibytes = (parameters * size + trained * (size + 8)) / 2**30
    rows = data.train[: recipe.optimiser.micro_batch]
    width = max(len(row.prompt) for row in rows)
    pad = prepared.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row.prompt)) + list(row.prompt) for row in rows])
    mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
    with torch.no_grad():
        device = trainer.accelerator.device
        logits = trainer.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, -1]
    labels = torch.tensor([row.label_ids for row in rows], device=logits.device)
    gold = torch.tensor([[row.gold] for row in rows], device=logits.device)
    loss = -label_logprobs(logits, labels).gather(-1, gold).mean().item()
    sets = ", ".join(f"{name} {len(examples)}" for name, examples in (("train", data.train), *data.evaluate.items()))
    return [
        f"rows: {sets}; {len(data.dropped)} dropped; fingerprint {data.fingerprint[:16]}",
        f"labels: {len(data.train[0].label_ids)}, first tokens {list(data.train[0].label_ids)}",
        f"longest prompt: {longest} tokens, and {recipe.rollout.max_tokens} to write",
        f"a step: {recipe.optimiser.prompts} prompts x {recipe.rollout.group} rollouts in {recipe.accumulation} parts",
        f"parameters: {parameters:,}, of which {trained:,} are trained",
        f"memory: {gibibytes:.2f} GiB for weights, gradients and optimiser, besides activations",
        f"first batch: cross-entropy {loss:.4f} of the labels right behind the prompt",
    ]


def provenance(prepared: Prepared) -> dict[str, Any]:
    """What a run is made from: recipe, task, data, and the libraries and the machine it runs on."""
    recipe = prepared.recipe.model_dump(mode="json", by_alias=True)
    return {
        "recipe": recipe,
        "recipe_sha256": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        "task": prepared.task.content_hash,
        "data": prepared.data.fingerprint,
        "dropped": len(prepared.data.dropped),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _model_place(recipe: Recipe, folder: Path) -> str:
    """A directory beside the recipe where there is one, else a name on the Hub."""
    path = resolve(recipe.model.path, folder)
    return str(path) if path.is_dir() else recipe.model.path
