"""A recipe made ready and run: model, data and trainer, checked before anything is spent."""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations import get_available_reporting_integrations

from demur.decision.prompt import PromptBuilder, split_answer
from demur.decision.rowhash import TRAINING_ROWS, training_rows
from demur.decision.task import Task
from demur.decision.taskfile import load_task
from demur.decision.wording import ANSWER_PREFIX
from demur.training import processes
from demur.training.batches import last_logits
from demur.training.checkpoints import EVALUATION, WRITING, best, clear, newest, put
from demur.training.data import RunData, load_data
from demur.training.direct_loss import OWN_CORRECT
from demur.training.errors import TrainingError
from demur.training.forward import ForwardTrainer, collate, forward_arguments
from demur.training.objectives import Objective, label_logprobs
from demur.training.own_rollouts import own_correct_rows
from demur.training.recipe import Recipe, resolve
from demur.training.weights import adapter_config, load_weights, merge, model_place

#: Beside every run's checkpoints: what it was made from.
PROVENANCE = "provenance.json"
#: Under a run's folder: the trained model, or its adapter, and the model with the adapter merged.
MODEL, MERGED = "model", "merged"
#: PEFT's settings beside an adapter.
ADAPTER = "adapter_config.json"

#: What of a recipe may change between a run's stop and its going on.
_FREE: dict[str, Any] = {"optimiser": {"micro_batch"}, "saves": {"keep"}, "log": True, "certify": True}

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
    task = load_task(resolve(recipe.task, folder))
    for library in recipe.log.to:
        if library not in get_available_reporting_integrations():
            raise TrainingError(f"log.to: {library} is not installed; pip install {library}, or leave it out")
    if recipe.rolls_out and recipe.rollout.kind == "free" and not _answer(task):
        raise TrainingError(
            f"the task {task.name} has an empty `answer_prefix`, so any label in a free rollout would be its decision; "
            "use `rollout.kind: forced`"
        )
    place, revision = model_place(recipe, folder), recipe.model.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
        config = AutoConfig.from_pretrained(place, revision=revision).get_text_config()
    except OSError as error:
        if Path(place).is_dir():
            raise
        path = resolve(place, folder).resolve()
        raise TrainingError(f"model.path: {path} is no directory, and the Hub did not give {place}: {error}") from error
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and recipe.max_length > context:
        raise TrainingError(f"max_length is {recipe.max_length}, and the context of {recipe.model.path} is {context}")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Prepared(recipe, folder, task, tokenizer, load_data(recipe, folder, task, PromptBuilder(tokenizer)))


def trainer_of(prepared: Prepared, out: Path, **arguments: Any) -> Any:
    """The trainer of a prepared recipe, its weights loaded: a ReasonedTrainer or a ForwardTrainer."""
    recipe = prepared.recipe
    return (_reasoned if recipe.rolls_out else _forward)(prepared, out, arguments)


def _reasoned(prepared: Prepared, out: Path, arguments: dict[str, Any]) -> Any:
    # Imported here: only this needs TRL, which takes some seconds.
    from demur.training.reasoned import ReasonedTrainer, RolloutPlan, as_dataset, decision_reward, trl_arguments

    recipe = prepared.recipe
    model = load_weights(recipe, prepared.folder)
    return ReasonedTrainer(
        objective=objective_of(recipe),
        plan=RolloutPlan(recipe.rollout.kind == "forced", recipe.rollout.max_tokens, _answer(prepared.task)),
        keep=recipe.saves.keep,
        model=model,
        peft_config=adapter_config(recipe, model),
        processing_class=prepared.tokenizer,
        reward_funcs=decision_reward,
        args=trl_arguments(recipe, out, **arguments),
        train_dataset=as_dataset(prepared.data.train),
    )


def _answer(task: Task) -> str:
    """The words that lead to a label."""
    given = task.spec.layout.answer_prefix
    answer, _ = split_answer(ANSWER_PREFIX if given is None else given)
    return answer.strip()


def _forward(prepared: Prepared, out: Path, arguments: dict[str, Any]) -> ForwardTrainer:
    recipe = prepared.recipe
    model = load_weights(recipe, prepared.folder)
    if recipe.model.adapter is not None:
        from peft import get_peft_model

        model = get_peft_model(model, adapter_config(recipe, model))
    return ForwardTrainer(
        model=model,
        args=forward_arguments(recipe, out, **arguments),
        train_dataset=prepared.data.train,
        pad_id=prepared.tokenizer.pad_token_id,
        objective=objective_of(recipe),
        learns_prefix=recipe.rollout.kind == "free",
        # A reasoned decision stands behind a thought of the model's own; one forward pass has none.
        evaluate=prepared.data.evaluate if recipe.mode == "direct" else {},
        own_correct=recipe.method == "own_correct" and recipe.mode == "direct",
        keep=recipe.saves.keep,
        best_by=recipe.saves.best_by,
    )


def objective_of(recipe: Recipe) -> Objective:
    """A recipe's objective as the loss functions take it."""
    given = recipe.objective
    if recipe.method == "own_correct":
        return OWN_CORRECT
    if recipe.method == "sft":
        return Objective(policy_weight=0, target="gold", calibration_weight=1.0, over=given.over)
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


def train(prepared: Prepared, out: Path, *, resume: bool, evaluate: bool = True, **arguments: Any) -> Path:
    """Runs a prepared recipe and returns the trained model's directory. `evaluate`: at every checkpoint.

    Every process of the run calls it. Raises TrainingError where there are not as many as the recipe wants, where the
    folder holds a run and `resume` was not asked for, or where the recipe or the data are not those that it began with;
    what does not change the weights (`_FREE`) may.
    """
    recipe, model = prepared.recipe, out / MODEL
    processes.check(recipe)
    found = newest(out)
    made_from = provenance(prepared)
    if (found or model.exists()) and not resume:
        raise TrainingError(f"{out} holds a run already; go on with --resume, or give another --out")
    noted = out / PROVENANCE
    if found is not None and noted.is_file():
        before = json.loads(noted.read_text(encoding="utf-8"))
        if _same_steps(before["recipe"], recipe):
            # It stays the run that it was, whose rollouts are known by this.
            made_from["recipe_sha256"] = before["recipe_sha256"]
        for what, key in (("recipe", "recipe_sha256"), ("data", "data"), ("task", "task")):
            if before[key] != made_from[key]:
                raise TrainingError(f"the {what} of {out} changed since its run began; give another --out")
    if processes.is_first():
        for line in _notes(prepared):
            click.echo(line, err=True)
        out.mkdir(parents=True, exist_ok=True)
        # Not before: what was refused takes nothing away.
        clear(out)
        _write(noted, made_from)
    learned = prepared
    if recipe.learns_rollouts:
        # One process draws, the others read what it wrote.
        with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
            rows = own_correct_rows(recipe, prepared.folder, prepared.data.train, prepared.tokenizer, out, made_from)
        learned = replace(prepared, data=replace(prepared.data, train=rows))
    if not evaluate:
        learned = replace(learned, data=replace(learned.data, evaluate={}))
    trainer = trainer_of(learned, out, **arguments)
    trainer.train(resume_from_checkpoint=None if found is None else str(found))
    chosen = {"step": trainer.state.global_step}
    if recipe.saves.best_by is not None:
        checkpoint = best(out, recipe.saves.best_by)
        trainer._load_from_checkpoint(str(checkpoint))  # noqa: SLF001
        evaluation = json.loads((checkpoint / EVALUATION).read_text(encoding="utf-8"))
        chosen = {"step": int(checkpoint.name.rpartition("-")[2]), "by": recipe.saves.best_by, "evaluation": evaluation}
    if trainer.is_fsdp_enabled:
        # Checkpoints may be in shards, the model is whole.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    # Whole or not there, so that it is never served without the hashes of its rows.
    aside = out / (MODEL + WRITING)
    trainer.save_model(str(aside))
    if processes.is_first():
        # The trainer's own, pickled: paths and all.
        (aside / "training_args.bin").unlink(missing_ok=True)
        if recipe.model.adapter is not None:
            settings = json.loads((aside / ADAPTER).read_text(encoding="utf-8"))
            _write(aside / ADAPTER, settings | {"base_model_name_or_path": recipe.model.path})
        prepared.tokenizer.save_pretrained(aside)
        # Also what it had learned before: a model of several stages is certified on none of their rows.
        before = training_rows(Path(model_place(recipe, prepared.folder)))
        hashes = sorted(before | {example.hash for example in prepared.data.train})
        (aside / TRAINING_ROWS).write_text("\n".join(hashes) + "\n", encoding="ascii")
        _write(aside / PROVENANCE, made_from | {"chosen": chosen})
        put(aside, model)
    return model


def _same_steps(noted: dict[str, Any], recipe: Recipe) -> bool:
    """Whether the recipe that a run has noted takes the same steps as this one."""
    try:
        before = Recipe.model_validate(noted)
    except ValueError:
        # Another version's.
        return False
    return before.model_dump(exclude=_FREE) == recipe.model_dump(exclude=_FREE)


def merged(prepared: Prepared, out: Path) -> Path:
    """The directory of a trained run's whole model: with an adapter, one that is written now, merged."""
    if prepared.recipe.model.adapter is None:
        return out / MODEL
    aside = out / (MERGED + WRITING)
    merge(prepared.recipe, prepared.folder, out / MODEL, aside)
    prepared.tokenizer.save_pretrained(aside)
    for name in (TRAINING_ROWS, PROVENANCE):
        shutil.copy(out / MODEL / name, aside / name)
    return put(aside, out / MERGED)


def calibrate(prepared: Prepared, out: Path, bundle: Path) -> int:
    """Makes the bundle of a trained and merged run with `demur calibrate`, and returns its exit status.

    A process of its own: it starts an engine, which wants the memory that training leaves.
    """
    recipe, given = prepared.recipe, prepared.recipe.certify
    assert given is not None  # noqa: S101  (the command line asked)
    model = out / (MODEL if recipe.model.adapter is None else MERGED)
    options: dict[str, Any] = {
        "task": resolve(recipe.task, prepared.folder),
        "data": resolve(given.data, prepared.folder),
        "searched": given.searched and resolve(given.searched, prepared.folder),
        "unlabelled": given.unlabelled and resolve(given.unlabelled, prepared.folder),
        "model": model,
        "model-name": recipe.name,
        "out": bundle,
        "reads": out / "certifying.reads.jsonl",
        "alpha": given.alpha,
        "beta": given.beta,
        "delta": given.delta,
        "family": given.family,
        "attempt": given.attempt,
        "valid-days": given.valid_days,
    }
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    program = "from demur.server.entry import main; main()"
    asked = [sys.executable, "-c", program, "calibrate", *words]
    return subprocess.run(asked, env=processes.alone(), check=False).returncode


def dry_run(prepared: Prepared, out: Path) -> list[str]:
    """What a run would do, a line each: rows, labels, a prompt's length, memory, and a first batch's losses."""
    recipe, data = prepared.recipe, prepared.data
    writes = recipe.rolls_out or recipe.learns_rollouts
    rollouts = f" x {recipe.rollout.group} rollouts" if recipe.rolls_out else ""
    trainer = trainer_of(prepared, out, report_to=[])
    parameters = sum(value.numel() for value in trainer.model.parameters())
    trained = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    longest = max(len(example.prompt) for example in data.train)
    size = torch.finfo(getattr(torch, recipe.model.dtype)).bits // 8
    # Weights, and for what is trained its gradient, AdamW's two moments in float32 and the master copy.
    gibibytes = (parameters * size + trained * (size + 8)) / 2**30
    rows = data.train[: recipe.optimiser.micro_batch]
    inputs = collate(rows, pad_id=prepared.tokenizer.pad_token_id, learns_prefix=recipe.rollout.kind == "free")
    inputs = {name: value.to(trainer.accelerator.device) for name, value in inputs.items()}
    with torch.no_grad():
        logits = last_logits(trainer.model, inputs)[:, -1]
        # Rollouts take long; without them there is no objective.
        loss = None if writes else trainer.compute_loss(trainer.model, inputs).item()
    entropy = -label_logprobs(logits, inputs["label_ids"]).gather(-1, inputs["gold"][:, None]).mean().item()
    behind = "empty thoughts, no rollouts being drawn" if writes else "their thoughts"
    behind = "the prompts" if recipe.mode == "direct" else behind
    sets = ", ".join(f"{name} {len(examples)}" for name, examples in (("train", data.train), *data.evaluate.items()))
    return [
        f"rows: {sets}; {len(data.dropped)} dropped; fingerprint {data.fingerprint[:16]}",
        f"labels: {len(data.train[0].label_ids)}, first tokens {list(data.train[0].label_ids)}",
        f"longest prompt: {longest} tokens" + (f", and {recipe.rollout.max_tokens} to write" if writes else ""),
        f"a step: {recipe.optimiser.prompts} prompts{rollouts} in {recipe.accumulation} parts",
        f"parameters: {parameters:,}, of which {trained:,} are trained",
        f"memory: {gibibytes:.2f} GiB for weights, gradients and optimiser, besides activations",
        f"first batch: cross-entropy {entropy:.4f} of the labels behind {behind}"
        + ("" if loss is None else f"; loss {loss:.4f}"),
        *_notes(prepared),
    ]


def _notes(prepared: Prepared) -> list[str]:
    """What can be meant, and often is not."""
    here, served = prepared.recipe.rollout.max_tokens, prepared.task.spec.thought.max_tokens
    if prepared.recipe.mode == "direct" or here == served:
        return []
    return [
        f"note: thoughts have at most {here} tokens here, and {served} where the task is served (`thought.max_tokens`)"
    ]


def provenance(prepared: Prepared) -> dict[str, Any]:
    """What a run is made from: recipe, task, data, and the libraries and the machine it runs on."""
    return {
        "recipe": prepared.recipe.model_dump(mode="json", by_alias=True),
        "recipe_sha256": recipe_sha256(prepared.recipe),
        "task": prepared.task.content_hash,
        "data": prepared.data.fingerprint,
        "dropped": len(prepared.data.dropped),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def recipe_sha256(recipe: Recipe) -> str:
    """SHA-256 (hex) of what a recipe says: a later version's new settings, at their defaults, make no other of it."""
    said = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _write(path: Path, value: dict[str, Any]) -> None:
    # Renamed, since another process may be reading it.
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    aside.rename(path)
