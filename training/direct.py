"""Direct training as a plain loop over batches made on the way; recipes are run by `forward`.

    trainer = DirectTrainer(model, objective, DirectSettings(steps=150), batches)
    for line in trainer.run():
        print(line)

`batches` yields one optimiser step's prompts after another. The model is called with `input_ids`, `attention_mask`
and `logits_to_keep=1`, and prompts are padded on the left, so that the last position decides.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demur.calibration import accuracy, brier_score, expected_calibration_error, negative_log_likelihood
from demur.training.direct_loss import OWN_CORRECT, DirectLoss, direct_loss, own_correct_loss
from demur.training.errors import NotFinite, OutOfMemory
from demur.training.objectives import Objective, label_logprobs


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """Prompts and their gold options.

    Attributes:
        input_ids: [B, T], padded on the left.
        attention_mask: [B, T].
        label_ids: [K], or [B, K] where options differ from row to row.
        gold: [B], option indices.
    """

    input_ids: Tensor
    attention_mask: Tensor
    label_ids: Tensor
    gold: Tensor

    def __len__(self) -> int:
        return len(self.gold)

    def part(self, start: int, stop: int) -> "PromptBatch":
        """Rows start..stop."""
        ids = self.label_ids if self.label_ids.dim() == 1 else self.label_ids[start:stop]
        return PromptBatch(self.input_ids[start:stop], self.attention_mask[start:stop], ids, self.gold[start:stop])


@dataclass(frozen=True, slots=True)
class DirectSettings:
    """How to train; what to minimise is the `Objective`.

    Attributes:
        steps: optimiser steps.
        micro_batch: prompts a forward pass; a step's prompts must divide into them. None for all at once.
        learning_rate: its peak, reached after `warmup` steps, then down to zero along half a cosine.
        weight_decay, max_grad_norm: of AdamW and of clipping.
        seed: of the sampled decisions.
        log_every: steps a line of the log.
        save_to: folder for the batch at which training had to stop.
    """

    steps: int
    micro_batch: int | None = None
    learning_rate: float = 1e-4
    warmup: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int = 10
    save_to: Path = Path()

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + cos(pi * done))


@dataclass(frozen=True, slots=True)
class LogLine:
    """The decision token over the last `log_every` steps, measured on the prompts just before they are learned from.

    Attributes:
        step: steps done.
        accuracy, ece, brier, nll, entropy, mean_confidence: of the labels' probabilities, normalised over the labels.
        label_mass: mean probability of all labels together; 1 where the objective looks at the labels only.
        reward: mean reward, or its expectation where nothing is sampled.
        policy_loss, calibration_loss, brier_loss: before their weights.
        lambda_rel: calibration weight x completion length, which is one token here.
        equal_groups: share of groups whose rewards are all equal.
        unreadable: share of rollouts whose token is no label.
        learning_rate: of the last step.
    """

    step: int
    accuracy: float
    ece: float
    brier: float
    nll: float
    entropy: float
    mean_confidence: float
    label_mass: float
    reward: float
    policy_loss: float
    calibration_loss: float
    brier_loss: float
    lambda_rel: float
    equal_groups: float
    unreadable: float
    learning_rate: float


class DirectTrainer:
    """Trains `model` in place; only parameters that require a gradient move."""

    def __init__(
        self, model: Any, objective: Objective, settings: DirectSettings, batches: Iterable[PromptBatch]
    ) -> None:
        self.model, self.objective, self.settings = model, objective, settings
        self.batches = iter(batches)
        self.step = 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.generator = torch.Generator(self.parameters[0].device).manual_seed(settings.seed)

    def run(self) -> Iterator[LogLine]:
        """Train; yields a line every `log_every` steps and at the end.

        Raises:
            NotFinite: a loss that is no number; the weights are those before the step.
            OutOfMemory: a micro-batch that does not fit.
        """
        self.model.train()
        window = _Window()
        while self.step < self.settings.steps:
            self.take(next(self.batches), window)
            if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
                yield window.line(self)
                window = _Window()

    def take(self, batch: PromptBatch, window: "_Window | None" = None) -> None:
        """One optimiser step."""
        size = self.settings.micro_batch or len(batch)
        if len(batch) % size:
            raise ValueError(f"{len(batch)} prompts a step do not divide into micro-batches of {size}")
        for start in range(0, len(batch), size):
            part = batch.part(start, start + size)
            try:
                loss = self._loss(part, len(batch) // size)
                self._refuse_if_not_finite(loss, part)
                loss.total.backward()  # type: ignore[no-untyped-call]
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(_smaller(size, len(batch))) from error
            if window is not None:
                window.add(loss, part)
        if window is not None:
            window.steps += 1
        rate = self.settings.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _loss(self, part: PromptBatch, accumulation_steps: int) -> DirectLoss:
        logits = decision_logits(self.model, part)
        return direct_loss(
            self.objective,
            logits,
            part.label_ids,
            part.gold,
            accumulation_steps=accumulation_steps,
            generator=self.generator,
        )

    def _refuse_if_not_finite(self, loss: DirectLoss, part: PromptBatch) -> None:
        if bool(torch.isfinite(loss.total.detach())):
            return
        self.optimizer.zero_grad()
        self.settings.save_to.mkdir(parents=True, exist_ok=True)
        path = self.settings.save_to / f"stopped-at-step-{self.step}.pt"
        torch.save(
            {name: getattr(part, name).cpu() for name in ("input_ids", "attention_mask", "label_ids", "gold")}, path
        )
        raise NotFinite(
            f"step {self.step}: the loss is {float(loss.total.detach())} (policy {loss.policy}, calibration"
            f" {loss.calibration}, Brier {loss.brier}); its batch is in {path}"
        )


class OwnCorrectTrainer(DirectTrainer):
    """A light SFT on the model's own correct decisions, after RL: the rollouts are those of a copy frozen at the start.

    See `own_correct_loss`.
    """

    def __init__(self, model: Any, settings: DirectSettings, batches: Iterable[PromptBatch]) -> None:
        super().__init__(model, OWN_CORRECT, settings, batches)
        self.frozen = deepcopy(model).eval().requires_grad_(False)

    def _loss(self, part: PromptBatch, accumulation_steps: int) -> DirectLoss:
        logits = decision_logits(self.model, part)
        with torch.no_grad():
            frozen = decision_logits(self.frozen, part)
        return own_correct_loss(logits, frozen, part.label_ids, part.gold, accumulation_steps=accumulation_steps)


def decision_logits(model: Any, batch: PromptBatch) -> Tensor:
    """Logits [B, V] at the last position."""
    logits: Tensor = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1, use_cache=False
    ).logits
    return logits[:, -1]


def decision_probabilities(model: Any, batches: Iterable[PromptBatch], *, over_labels: bool = True) -> Tensor:
    """Probabilities [n, K] that the model in evaluation mode gives the labels, over them or over the vocabulary."""
    training = model.training
    model.eval()
    with torch.no_grad():
        rows = [
            label_logprobs(decision_logits(model, batch), batch.label_ids, "labels" if over_labels else "vocabulary")
            for batch in batches
        ]
    model.train(training)
    return torch.cat(rows).exp()


class _Window:
    """What the log averages over."""

    def __init__(self) -> None:
        self.steps = 0
        self.losses: list[DirectLoss] = []
        self.gold: list[Tensor] = []

    def add(self, loss: DirectLoss, part: PromptBatch) -> None:
        self.losses.append(replace(loss, total=loss.total.detach()))
        self.gold.append(part.gold)

    def line(self, trainer: DirectTrainer) -> LogLine:
        raw = torch.cat([loss.probabilities for loss in self.losses]).double().cpu().numpy()
        gold = torch.cat(self.gold).cpu().numpy()
        mass = raw.sum(axis=1)
        p = raw / mass[:, None]
        objective, prompts = trainer.objective, len(gold)

        def a_step(name: str) -> float:
            return float(sum(getattr(loss, name) for loss in self.losses)) / self.steps

        return LogLine(
            step=trainer.step,
            accuracy=accuracy(p, gold),
            ece=expected_calibration_error(p, gold),
            brier=brier_score(p, gold),
            nll=negative_log_likelihood(p, gold),
            entropy=float(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=1).mean()),
            mean_confidence=float(p.max(axis=1).mean()),
            label_mass=float(mass.mean()),
            reward=float(np.mean([loss.reward for loss in self.losses])),
            policy_loss=a_step("policy"),
            calibration_loss=a_step("calibration"),
            brier_loss=a_step("brier"),
            lambda_rel=objective.calibration_weight,
            equal_groups=sum(loss.equal_groups for loss in self.losses) / prompts,
            unreadable=sum(loss.unreadable for loss in self.losses) / (prompts * objective.group),
            learning_rate=trainer.optimizer.param_groups[0]["lr"],
        )


def _smaller(size: int, prompts: int) -> str:
    fits = [d for d in range(1, size) if prompts % d == 0]
    advice = f"try micro_batch {fits[-1]}" if fits else "shorten the prompts or train fewer layers"
    return f"a micro-batch of {size} prompts does not fit into memory: {advice}"
