"""Training by one forward pass a row: direct mode with every objective, and SFT on written thoughts.

transformers' Trainer with the decision's loss at the last position. What its trainer brings (PEFT, accelerate, FSDP,
DeepSpeed, logs, schedules) stays as it is; checkpoints are whole, and going on from one is exact.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainingArguments

from demur.training.arguments import shared_arguments
from demur.training.batches import batched, last_logits
from demur.training.checkpoints import WholeCheckpoints
from demur.training.data import Example
from demur.training.direct_loss import DirectLoss, direct_loss, own_correct_loss
from demur.training.errors import NotFinite, TrainingError
from demur.training.memory import fitting, too_large
from demur.training.objectives import Objective, label_logprobs
from demur.training.processes import gathered
from demur.training.recipe import Recipe
from demur.training.seen import failed_batch, summary

#: A position that no token is learned at.
NOTHING = -100


def forward_arguments(recipe: Recipe, out: Path, **more: Any) -> TrainingArguments:
    """transformers' arguments with everything pinned that a recipe can say or that changes a result."""
    return TrainingArguments(
        **shared_arguments(recipe, out)
        | {
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
        | more
    )


class ForwardTrainer(WholeCheckpoints, Trainer):  # type: ignore[misc]
    """Learns decisions, and the thoughts before them where examples have one.

    Args:
        objective: of the decision.
        learns_prefix: whether what leads from a thought to its label is written by the model, and so learned.
        evaluate: sets that are measured at every checkpoint.
        own_correct: learn gold with the probability that the model begins with; see `own_correct_loss`.
        keep, best_by: see `WholeCheckpoints`.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        train_dataset: Sequence[Example],
        pad_id: int,
        objective: Objective,
        learns_prefix: bool = False,
        evaluate: Mapping[str, Sequence[Example]] | None = None,
        own_correct: bool = False,
        keep: int = 2,
        best_by: str | None = None,
    ) -> None:
        self._step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        if len(train_dataset) < self._step:
            raise TrainingError(f"{len(train_dataset)} training rows are less than the {self._step} of one step")
        self.frozen = deepcopy(model).eval().requires_grad_(False).to(args.device) if own_correct else None
        # Checkpointed layers keep no cache, and wrappers of many processes want one forward a step.
        share = args.world_size == 1 and not args.gradient_checkpointing
        self._collate = partial(collate, pad_id=pad_id, learns_prefix=learns_prefix, share=share)
        super().__init__(
            model=model, args=args, train_dataset=list(train_dataset), data_collator=lambda rows: self._collate(rows)
        )
        # Each process samples decisions and dropout of its own.
        set_seed(args.seed, device_specific=True)
        # The loss is a mean over rows: the trainer divides it by the micro-batches of a step.
        self.model_accepts_loss_kwargs = False
        self.objective, self.keep, self.best_by = objective, keep, best_by
        self._evaluate = dict(evaluate or {})
        self._seen: list[tuple[DirectLoss, Tensor, float]] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        # Every step has all its prompts: what is left of an epoch would make a smaller one, as micro_batch has it.
        rows = self.train_dataset if train_dataset is None else train_dataset
        return RandomSampler(rows, num_samples=len(rows) // self._step * self._step)

    def training_step(self, *arguments: Any, **more: Any) -> Tensor:
        """One micro-batch. Raises NotFinite with the batch saved, or OutOfMemory with a smaller size to try."""
        with fitting(self._too_large()):
            return super().training_step(*arguments, **more)  # type: ignore[no-any-return]

    def _too_large(self) -> str:
        return too_large(self.args.per_device_train_batch_size, "prompts", "shorten the prompts")

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], **_: Any) -> Tensor:
        """Mean over the rows of the decision's loss and the thought's negative log-likelihood."""
        logits = last_logits(model, inputs, inputs["targets"].shape[1] + 1)
        decision, labels, gold = logits[:, -1], inputs["label_ids"], inputs["gold"]
        if self.frozen is None:
            loss = direct_loss(self.objective, decision, labels, gold)
        else:
            with torch.no_grad():
                before = last_logits(self.frozen, inputs)[:, -1]
            loss = own_correct_loss(decision, before, labels, gold)
        total, thought = loss.total, 0.0
        if inputs["targets"].shape[1]:
            written = cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), inputs["targets"].flatten(), ignore_index=NOTHING, reduction="sum"
            )
            written = written / len(gold)
            total, thought = total + written, float(written.detach())
        if not torch.isfinite(total):
            path = failed_batch(Path(self.args.output_dir))
            torch.save({name: value.cpu() for name, value in inputs.items()}, path)
            raise NotFinite(
                f"the loss is {total.item()} at step {self.state.global_step} (policy {loss.policy}, calibration "
                f"{loss.calibration}, Brier {loss.brier}, thought {thought}); its batch is saved in {path}"
            )
        self._seen.append(
            (replace(loss, total=total.detach().cpu(), probabilities=loss.probabilities.cpu()), gold.cpu(), thought)
        )
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the decisions since the last line look like, those of all processes."""
        if self._seen:
            seen = gathered(self._seen)
            losses = [loss for loss, _, _ in seen]
            p = torch.cat([loss.probabilities for loss in losses]).float().numpy()
            gold = torch.cat([gold for _, gold, _ in seen]).numpy()
            found = summary(np.log(np.maximum(p, 1e-38)), gold)
            rows, group = len(gold), self.objective.group
            logs |= {f"decision/{name}": value for name, value in found.items()}
            logs |= {
                "reward": float(np.mean([loss.reward for loss in losses])),
                "loss/policy": float(np.mean([loss.policy for loss in losses])),
                "loss/calibration": float(np.mean([loss.calibration for loss in losses])),
                "loss/brier": float(np.mean([loss.brier for loss in losses])),
                "loss/thought": float(np.mean([thought for _, _, thought in seen])),
                "lambda_rel": self.objective.calibration_weight,
                "rollouts/unreadable": sum(loss.unreadable for loss in losses) / (rows * group),
                "rollouts/equal_groups": sum(loss.equal_groups for loss in losses) / rows,
            }
            self._seen.clear()
        super().log(logs, start_time)

    def evaluation(self) -> dict[str, dict[str, float]]:
        """Figures of every evaluation set, its probabilities normalised over the labels."""
        found = {name: self.measure(examples) for name, examples in self._evaluate.items()}
        if found:
            self.log({f"eval/{name}_{key}": value for name, figures in found.items() for key, value in figures.items()})
        return found

    def measure(self, examples: Sequence[Example]) -> dict[str, float]:
        """Figures of some examples by the model as it is; see `summary`. Nothing random is drawn.

        Raises OutOfMemory as a step does.
        """
        training, size = self.model.training, self.args.per_device_train_batch_size
        self.model.eval()
        logprobs: list[Tensor] = []
        with torch.no_grad(), fitting(self._too_large()):
            # By length, so that little is padded.
            ordered = sorted(examples, key=lambda example: len(_ids(example)))
            for start in range(0, len(ordered), size):
                inputs = self._prepare_inputs(self._collate(ordered[start : start + size]))
                logits = last_logits(self.model, inputs)[:, -1]
                logprobs.append(label_logprobs(logits, inputs["label_ids"], "labels").float().cpu())
        self.model.train(training)
        return summary(torch.cat(logprobs).numpy(), np.array([example.gold for example in ordered]))


def collate(examples: Sequence[Example], *, pad_id: int, learns_prefix: bool, share: bool = False) -> dict[str, Tensor]:
    """Rows padded on the left, so that the last position decides.

    `targets` [B, L]: the tokens of thoughts, aligned to the positions before the last; `NOTHING` where none is learned.
    The rest is as `batched` says.
    """
    rows = [_ids(example) for example in examples]
    targets = [_targets(example, learns_prefix) for example in examples]
    length = max(map(len, targets))
    # Every row keeps the positions whose logits are asked for.
    return batched(rows, pad_id, share=share, own=length + 1) | {
        "targets": torch.tensor([[NOTHING] * (length - len(row)) + row for row in targets], dtype=torch.int64),
        "label_ids": torch.tensor([example.label_ids for example in examples]),
        "gold": torch.tensor([example.gold for example in examples]),
    }


def _ids(example: Example) -> list[int]:
    return [*example.prompt, *example.thought, *example.after_thought]


def _targets(example: Example, learns_prefix: bool) -> list[int]:
    """What is learned from the prompt's end to the decision: the thought, then the prefix or that the thought ends."""
    after = list(example.after_thought)
    if not example.thought:
        return []
    if not learns_prefix:
        # The server ends a thought at its end marker and sets the prefix itself.
        after = [example.stop_ids[0] if example.stop_ids else NOTHING, *[NOTHING] * len(after)][: len(after)]
    return [*example.thought, *after]
