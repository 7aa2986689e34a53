"""Reasoned mode: TRL's GRPO trainer, with the decision's own distribution in the loss.

What is added to TRL, and nothing else: prompts are token ids, as the server makes them; a thought can be cut and the
answer prefix set as the server does; each completion's decision is found; its distribution is computed in the same
forward pass from the same hidden states, at temperature 1; the advantage of the decision token can be zero; and
checkpoints are whole, in a place from which a run goes on exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from demur.training.arguments import shared_arguments
from demur.training.checkpoints import WholeCheckpoints
from demur.training.data import Example
from demur.training.decisions import Decision, ForcedDecision, find_decision
from demur.training.errors import NotFinite
from demur.training.memory import fitting, too_large
from demur.training.objectives import Objective, brier_term, calibration_targets, calibration_term, label_logprobs
from demur.training.processes import gathered
from demur.training.recipe import Recipe
from demur.training.seen import failed_batch, summary
from demur.training.trl import FusedCausalLMOutput, GRPOConfig, GRPOTrainer, RepeatSampler, maybe_gather_lm_head_ctx

UNREADABLE = -1


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How rollouts end; see `recipe.Rollout`. `answer`: the words that lead to a label, without their last spaces."""

    forced: bool
    budget: int
    answer: str


def as_dataset(examples: Sequence[Example]) -> Dataset:
    """Examples as the columns that the trainer carries along."""
    return Dataset.from_list(
        [
            {
                "prompt": list(example.prompt),
                "gold": example.gold,
                "label_ids": list(example.label_ids),
                "sequences": [list(sequence) for sequence in example.sequences],
                "after_thought": list(example.after_thought),
                "stop_ids": list(example.stop_ids),
            }
            for example in examples
        ]
    )


def decision_reward(decision: Sequence[int], gold: Sequence[int], **_: Any) -> list[float]:
    """1 for the gold option, 0 for another one and for a rollout without a readable decision."""
    return [float(option == right) for option, right in zip(decision, gold, strict=True)]


def trl_arguments(recipe: Recipe, out: Path, **more: Any) -> GRPOConfig:
    """TRL's arguments with everything pinned that a recipe can say or that changes a result."""
    rollout, grpo = recipe.rollout, recipe.grpo
    return GRPOConfig(
        **shared_arguments(recipe, out)
        | {
            "steps_per_generation": recipe.accumulation,
            "num_generations": rollout.group,
            "num_iterations": grpo.iterations,
            "max_completion_length": rollout.max_tokens,
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
            "loss_type": grpo.loss_type,
            "beta": grpo.beta,
            "epsilon": grpo.epsilon,
            "epsilon_high": grpo.epsilon_high,
            "scale_rewards": grpo.scale_rewards,
            "importance_sampling_level": grpo.importance,
            "mask_truncated_completions": grpo.mask_truncated,
            "disable_dropout": False,
            "shuffle_dataset": True,
            "use_vllm": False,
            "log_completions": False,
        }
        | more
    )


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with an order that belongs to the epoch, so that a resumed run meets the same prompts."""

    #: Asked when an epoch begins. The first epoch's order is TRL's own.
    epoch: Callable[[], int]

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self.epoch())
        return super().__iter__()  # type: ignore[no-any-return]


class ReasonedTrainer(WholeCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """GRPO over thoughts that end in a decision; see the module. `keep`: how many checkpoints stay."""

    def __init__(self, *, objective: Objective, plan: RolloutPlan, keep: int = 2, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.objective, self.plan, self.keep = objective, plan, keep
        self._forcing: ForcedDecision | None = None
        self._seen: list[tuple[torch.Tensor, ...]] = []
        add_decision_head(self.accelerator.unwrap_model(self.model))

    # --- prompts and rollouts ---

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        device = output["completion_ids"].device
        position = torch.tensor([row["position"] for row in inputs], device=device)
        output["decision_position"] = position
        for key in ("decision", "gold", "label_ids"):
            output[key] = torch.tensor([row[key] for row in inputs], device=device)
        if self.objective.policy_weight != 1.0:
            weights = torch.ones(output["completion_ids"].shape, device=device)
            read = (position != UNREADABLE).nonzero().flatten()
            weights[read, position[read]] = self.objective.policy_weight
            output["advantages"] = output["advantages"].unsqueeze(1) * weights
        mode = "train" if self.model.training else "eval"
        counts = {
            "unreadable": (position == UNREADABLE).float().mean(),
            "decided_twice": torch.tensor([float(row["found"] > 1) for row in inputs], device=device).mean(),
        }
        for name, value in counts.items():
            self._metrics[mode][f"rollouts/{name}"].append(self.accelerator.gather(value).mean().item())
        return output

    def _generate(self, prompts: list[list[int]]) -> tuple[Any, ...]:
        prompt_ids, completions, mask, texts, logprobs, extra, *images = super()._generate(prompts)
        if self.plan.forced:
            decisions, mask = self._forced(completions)
        else:
            decisions = [self._free(ids, row) for ids, row in zip(completions, self._rows, strict=True)]
        extra["position"] = [UNREADABLE if found is None else found.position for found in decisions]
        extra["decision"] = [UNREADABLE if found is None else found.option for found in decisions]
        extra["found"] = [0 if found is None else found.found for found in decisions]
        return prompt_ids, completions, mask, texts, logprobs, extra, *images

    def _free(self, ids: list[int], row: dict[str, Any]) -> Decision | None:
        decode = partial(self.processing_class.decode, skip_special_tokens=True)
        return find_decision(ids, row["sequences"], self.plan.answer, decode)

    def _forced(self, completions: list[list[int]]) -> tuple[list[Decision | None], list[list[int]]]:
        """Decisions, and a mask in which whatever was set and not drawn counts as the environment's."""
        assert self._forcing is not None  # noqa: S101  (generation went before)
        decisions: list[Decision | None] = []
        masks: list[list[int]] = []
        for ids, row, thought in zip(completions, self._rows, self._forcing.thought_lengths, strict=True):
            end = thought + len(row["after_thought"])
            del ids[end + 1 :]
            masks.append([1] * thought + [0] * (end - thought) + [1])
            decisions.append(Decision(end, row["label_ids"].index(ids[end])))
        return decisions, masks

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any, **more: Any) -> tuple[Any, Any]:
        model = self.accelerator.unwrap_model(self.model_wrapped)
        # Of sharded weights every process needs every other one's, until all their rollouts have ended.
        given: dict[str, Any] = {"synced_gpus": True} if self.is_fsdp_enabled else {}
        # Whatever the micro-batch, those of a whole step.
        told = (
            f"{len(prompt_ids)} rollouts of {self.plan.budget} tokens are generated at once and do not fit into "
            "memory; set a smaller optimiser.prompts, rollout.group or rollout.max_tokens, or use more processes"
        )
        if not self.plan.forced:
            with fitting(told), generating(model, **given):
                return super()._generate_single_turn(prompt_ids, *others, **more)  # type: ignore[no-any-return]
        rows = self._rows
        self._forcing = ForcedDecision(
            start=max(map(len, prompt_ids)),
            budget=self.plan.budget,
            after=[row["after_thought"] for row in rows],
            stop_ids=[*rows[0]["stop_ids"], *self.eos_token_ids],
            label_ids=[row["label_ids"] for row in rows],
            end_id=self._tokenizer.eos_token_id,
            temperature=self.args.temperature,
        )
        longest = self.plan.budget + max(len(row["after_thought"]) for row in rows) + 2
        given["logits_processor"] = LogitsProcessorList([self._forcing])
        with fitting(told), generating(model, **given), writing(self.generation_config, longest):
            return super()._generate_single_turn(prompt_ids, *others, **more)  # type: ignore[no-any-return]

    # --- the loss ---

    def training_step(self, *arguments: Any, **more: Any) -> torch.Tensor:
        """One micro-batch. Raises NotFinite with the batch saved, or OutOfMemory with a smaller size to try."""
        size = self.args.per_device_train_batch_size
        with fitting(too_large(size, "rollouts", "set a smaller rollout.max_tokens")):
            return super().training_step(*arguments, **more)  # type: ignore[no-any-return]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        readable = inputs["decision_position"] != UNREADABLE
        place = inputs["prompt_ids"].size(1) + inputs["decision_position"].clamp(min=0)
        rows: list[torch.Tensor] = []

        def forward(**arguments: Any) -> Any:
            # The distribution of a token is at the position before it.
            outputs = model(**arguments, decision_rows=place - 1)
            rows.append(outputs.decision_logits)
            return outputs

        loss: torch.Tensor = super()._compute_loss(forward, inputs)
        mode, steps = "train" if self.model.training else "eval", self.current_gradient_accumulation_steps
        self._note(mode, "loss/policy", loss.detach() * (steps if mode == "train" else 1))
        term = self._decision_term(rows[0], inputs, readable)
        loss = loss if term is None else loss + term
        if not torch.isfinite(loss):
            path = failed_batch(Path(self.args.output_dir))
            torch.save({key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}, path)
            raise NotFinite(f"the loss is {loss.item()} at step {self.state.global_step}; its batch is saved in {path}")
        return loss

    def _decision_term(
        self, logits: torch.Tensor, inputs: dict[str, Any], readable: torch.Tensor
    ) -> torch.Tensor | None:
        objective, mode = self.objective, "train" if self.model.training else "eval"
        label_ids, gold = inputs["label_ids"], inputs["gold"]
        logprobs = label_logprobs(logits.detach(), label_ids, objective.over)
        seen = (logprobs, gold, inputs["decision"])
        self._seen.append(tuple(part[readable].cpu() for part in seen))
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        shared: dict[str, Any] = {"over": objective.over, "readable": readable, "accumulation_steps": steps}
        terms = []
        if objective.calibration_weight > 0 and objective.target is not None:
            decided = logprobs.argmax(-1) if objective.target_decision == "argmax" else inputs["decision"].clamp(min=0)
            target = calibration_targets(
                objective.target, logprobs.exp(), decided, decided == gold, gold, clamp=objective.target_clamp
            )
            found = calibration_term(logits, label_ids, target, **shared)
            terms.append(objective.calibration_weight * found)
            self._note(mode, "loss/calibration", found.detach() * steps)
            lengths = inputs["completion_mask"].sum(-1).float().mean()
            self._note(mode, "lambda_rel", objective.calibration_weight * lengths)
        if objective.brier_weight > 0:
            found = brier_term(logits, label_ids, gold, **shared)
            terms.append(objective.brier_weight * found)
            self._note(mode, "loss/brier", found.detach() * steps)
        return sum(terms[1:], terms[0]) if terms else None

    def _note(self, mode: str, name: str, value: torch.Tensor) -> None:
        self._metrics[mode][name].append(self.accelerator.gather(value).mean().item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the decisions since the last line look like, those of all processes."""
        if self._seen:
            seen = gathered(self._seen)
            logprobs, gold, decided = (torch.cat(part).float().numpy() for part in zip(*seen, strict=True))
            self._seen.clear()
            if len(gold):
                prefix = "decision/" if self.model.training else "eval_decision/"
                logs |= {prefix + name: value for name, value in summary(logprobs, gold, decided).items()}
        super().log(logs, start_time)

    # --- going on where a run stopped ---

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        stock = super()._get_train_sampler(dataset)
        sampler = EpochSampler(
            stock.data_source, stock.mini_repeat_count, stock.batch_size, stock.repeat_count, stock.shuffle, stock.seed
        )
        sampler.epoch = lambda: int(self.state.epoch or 0)
        return sampler


@dataclass
class DecisionOutput(FusedCausalLMOutput):  # type: ignore[misc]
    """TRL's output and `decision_logits` [B, V]. DDP takes outputs apart and makes them again by their class."""

    decision_logits: torch.Tensor | None = None


def add_decision_head(model: PreTrainedModel) -> None:
    """Lets `model(..., fused_lm_head=True, decision_rows=rows)` return `decision_logits` [B, V] at the positions [B].

    They come from the hidden states of the same pass, inside the wrapped forward, where a sharded head is whole. TRL
    divides its own logits by the sampling temperature; these are not divided.
    """
    model = getattr(model, "base_model", model).model if hasattr(model, "peft_config") else model
    fused = model.forward
    config = model.config.get_text_config()
    scaled = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    if any(getattr(config, name, None) not in {None, 1.0} for name in scaled):
        raise ValueError(f"a model that scales its logits ({config.model_type}) cannot be trained in reasoned mode yet")
    cap = getattr(config, "final_logit_softcapping", None)

    @wraps(fused)
    def forward(*args: Any, decision_rows: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if decision_rows is None:
            return fused(*args, **kwargs)
        held: list[torch.Tensor] = []
        hook = model.base_model.register_forward_hook(lambda _, __, out: held.append(out.last_hidden_state))
        try:
            outputs = fused(*args, **kwargs)
        finally:
            hook.remove()
        hidden = held[0][torch.arange(len(decision_rows), device=held[0].device), decision_rows]
        # Read as TRL reads it, not called: else FSDP would free it before TRL's backward pass.
        head = model.get_output_embeddings()
        if isinstance(head.weight, DTensor) and head.weight.requires_grad:
            raise ValueError("a trained head that FSDP shards by itself gets wrong gradients: train an adapter")
        weight, bias = (part.full_tensor() if isinstance(part, DTensor) else part for part in (head.weight, head.bias))
        with maybe_gather_lm_head_ctx(weight, bias):
            logits = torch.nn.functional.linear(hidden, weight, bias)
        return DecisionOutput(**outputs, decision_logits=cap * torch.tanh(logits / cap) if cap else logits)

    model.forward = forward


@contextmanager
def generating(model: Any, **given: Any) -> Iterator[None]:
    """`model.generate` with more arguments, for as long as this lasts."""
    own = vars(model).get("generate")
    model.generate = partial(model.generate, **given)
    try:
        yield
    finally:
        # FSDP has put one of its own there.
        if own is None:
            del model.generate
        else:
            model.generate = own


@contextmanager
def writing(config: GenerationConfig, longest: int) -> Iterator[None]:
    """Room for `longest` tokens, for as long as this lasts."""
    length = config.max_new_tokens
    config.max_new_tokens = longest
    try:
        yield
    finally:
        config.max_new_tokens = length
