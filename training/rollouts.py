"""Rollouts outside training: thoughts that a model writes, and what it decides behind them.

The same forced rollouts as in training and on the server: a thought ends by itself or at its budget, then the answer
prefix is set and the labels' probabilities are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessorList

from demur.training.batches import batched, last_logits
from demur.training.data import Example
from demur.training.decisions import ForcedDecision
from demur.training.objectives import label_logprobs

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One thought and its decision.

    Attributes:
        thought: token ids.
        option: the decision drawn behind it.
        probabilities: [K], what the model gives the labels there, of the whole vocabulary, at temperature 1.
    """

    thought: tuple[int, ...]
    option: int
    probabilities: FloatArray


def roll_out(
    model: Any,
    examples: Sequence[Example],
    *,
    budget: int,
    group: int = 1,
    temperature: float = 1.0,
    pad_id: int,
    end_id: int,
    batch: int = 64,
) -> list[list[Rollout]]:
    """`group` rollouts of each example, thoughts of at most `budget` tokens; drawn from torch's global generator."""
    repeated = [example for example in examples for _ in range(group)]
    drawn: list[tuple[tuple[int, ...], int]] = []
    for start in range(0, len(repeated), batch):
        drawn += _draw(model, repeated[start : start + batch], budget, temperature, pad_id, end_id)
    p = read_decisions(model, repeated, [thought for thought, _ in drawn], pad_id=pad_id, batch=batch)
    found = [Rollout(thought, option, row) for (thought, option), row in zip(drawn, p, strict=True)]
    return [found[start : start + group] for start in range(0, len(found), group)]


def read_decisions(
    model: Any, examples: Sequence[Example], thoughts: Sequence[Sequence[int]] | None, *, pad_id: int, batch: int = 64
) -> FloatArray:
    """Probabilities [n, K] of the labels, of the whole vocabulary: behind the prompt, or behind each one's thought."""
    ids = [
        [*example.prompt, *(() if thoughts is None else (*thoughts[row], *example.after_thought))]
        for row, example in enumerate(examples)
    ]
    # By length, so that little is padded.
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    p = np.empty((len(ids), len(examples[0].label_ids)))
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = batched([ids[row] for row in rows], pad_id, share=True)
            logits = last_logits(model, {name: value.to(device) for name, value in inputs.items()})[:, -1]
            labels = torch.tensor([examples[row].label_ids for row in rows], device=device)
            p[rows] = label_logprobs(logits, labels).exp().double().cpu().numpy()
    model.train(training)
    return p


def _draw(
    model: Any, examples: Sequence[Example], budget: int, temperature: float, pad_id: int, end_id: int
) -> list[tuple[tuple[int, ...], int]]:
    device = next(model.parameters()).device
    inputs = batched([example.prompt for example in examples], pad_id)
    start = inputs["input_ids"].shape[1]
    forcing = ForcedDecision(
        start=start,
        budget=budget,
        after=[example.after_thought for example in examples],
        stop_ids=[*examples[0].stop_ids, end_id],
        label_ids=[example.label_ids for example in examples],
        end_id=end_id,
        temperature=temperature,
    )
    training = model.training
    model.eval()
    with torch.no_grad():
        written = model.generate(
            input_ids=inputs["input_ids"].to(device),
            attention_mask=inputs["attention_mask"].to(device),
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=temperature,
                top_k=0,
                max_new_tokens=budget + max(len(example.after_thought) for example in examples) + 2,
                pad_token_id=pad_id,
                eos_token_id=end_id,
                bos_token_id=None,
            ),
            logits_processor=LogitsProcessorList([forcing]),
        )[:, start:].tolist()
    model.train(training)
    found = []
    for ids, example, length in zip(written, examples, forcing.thought_lengths, strict=True):
        decision = ids[length + len(example.after_thought)]
        found.append((tuple(ids[:length]), example.label_ids.index(decision)))
    return found
