"""Extraction diagnosis (`demur diagnose`): does a decision say what the model believes, or repeat its reasoning?

The reasoning before a decision is replaced by that of another rollout, and the decision is read again. Where it follows
whatever it is given, and as surely as before, its probability says little about the input: it is extracted from the
reasoning (arXiv:2601.13284 finds 92-100% of decisions to flip).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from demur.training.data import Example
from demur.training.errors import TrainingError
from demur.training.readings import load_model
from demur.training.rollouts import FloatArray, Rollout, read_decisions, roll_out
from demur.training.run import Prepared

#: Above it a decision token counts as extreme.
EXTREME = 0.99
OTHER_DECISION, OTHER_ITEM = "same prompt, other decision", "other item, other decision"
CONTROL, OTHER_ITEM_CONTROL = "same prompt, same decision", "other item, same decision"


@dataclass(frozen=True)
class Swap:
    """Decisions read again behind replaced reasoning; what is not defined without decisions is NaN.

    Attributes:
        n: decisions.
        followed: share whose most probable option is then the decision of the rollout that the reasoning is from.
        kept: share whose most probable option is then the decision of before. In a control both are the same.
        confidence: mean probability of the most probable option, over the labels, of those that followed.
        extreme: share of all whose most probable label has more than .99 of the vocabulary.
    """

    n: int
    followed: float
    kept: float
    confidence: float
    extreme: float


@dataclass(frozen=True)
class Diagnosis:
    """What became of decisions.

    Attributes:
        items, rollouts: how many, and a prompt.
        extreme: share of rollouts whose most probable label has more than .99 of the vocabulary, nothing replaced.
        disagree: share of items whose rollouts decided differently.
        swaps: by where the reasoning came from. A decision is the one that was drawn. A thought of the same prompt is
            read in its own place: that row says how surely a thought fixes its decision. Rows from another item say
            whether the thought or the prompt decides.
    """

    items: int
    rollouts: int
    extreme: float
    disagree: float
    swaps: Mapping[str, Swap]


def diagnose(
    examples: Sequence[Example],
    rollouts: Sequence[Sequence[Rollout]],
    read: Callable[[list[Example], list[tuple[int, ...]]], FloatArray],
    *,
    seed: int = 0,
) -> Diagnosis:
    """Swaps reasoning among rollouts, one random partner a rollout and kind.

    Args:
        examples: items.
        rollouts: each item's.
        read: probabilities [n, K], over the vocabulary, of examples behind given thoughts.
        seed: of the choice of partners.
    """
    rng = np.random.default_rng(seed)
    flat = [(item, rollout) for item, drawn in enumerate(rollouts) for rollout in drawn]
    decisions = np.array([rollout.option for _, rollout in flat])
    items = np.array([item for item, _ in flat])
    # Another item's reasoning can stand in only where its options are read by the same tokens.
    kinds: dict[tuple[int, ...], int] = {}
    kind = np.array([kinds.setdefault(examples[item].label_ids, len(kinds)) for item in items])
    swaps = {}
    for name, same_item, same_decision in (
        (OTHER_DECISION, True, False),
        (OTHER_ITEM, False, False),
        (CONTROL, True, True),
        (OTHER_ITEM_CONTROL, False, True),
    ):
        pairs = []
        for host in range(len(flat)):
            fits = ((items == items[host]) == same_item) & ((decisions == decisions[host]) == same_decision)
            fits &= kind == kind[host]
            fits[host] = False
            if fits.any():
                pairs.append((host, int(rng.choice(np.flatnonzero(fits)))))
        p = np.zeros((0, 1))
        if pairs and same_item:
            p = np.array([flat[donor][1].probabilities for _, donor in pairs])
        elif pairs:
            p = read([examples[items[host]] for host, _ in pairs], [flat[donor][1].thought for _, donor in pairs])
        hosts, donors = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        swaps[name] = _swap(p, decisions[hosts], decisions[donors])
    raw = [rollout.probabilities.max() for _, rollout in flat]
    return Diagnosis(
        items=len(examples),
        rollouts=len(rollouts[0]),
        extreme=float(np.mean(np.array(raw) > EXTREME)),
        disagree=float(np.mean([len({rollout.option for rollout in drawn}) > 1 for drawn in rollouts])),
        swaps=swaps,
    )


def report(found: Diagnosis) -> str:
    """Markdown."""
    lines = [
        f"{found.items} items, {found.rollouts} rollouts each.",
        f"Decision tokens with p > {EXTREME}: {found.extreme:.1%}.",
        f"Items whose rollouts decide differently: {found.disagree:.1%}.",
        "",
        "| reasoning from | decisions | follow it | stay | confidence of those that follow | p > 0.99 |",
        "|---|---|---|---|---|---|",
    ]
    for name, swap in found.swaps.items():
        cells = [f"{value:.1%}" if swap.n else "" for value in (swap.followed, swap.kept)]
        cells += [f"{swap.confidence:.3f}" if swap.n else "", f"{swap.extreme:.1%}" if swap.n else ""]
        lines.append(f"| {name} | {swap.n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _swap(p: FloatArray, before: NDArray[np.int64], donors: NDArray[np.int64]) -> Swap:
    if not len(p):
        return Swap(0, float("nan"), float("nan"), float("nan"), float("nan"))
    top, followed = p.argmax(axis=1), p.argmax(axis=1) == donors
    confidence = p.max(axis=1) / np.maximum(p.sum(axis=1), np.finfo(np.float64).tiny)
    return Swap(
        n=len(p),
        followed=float(followed.mean()),
        kept=float((top == before).mean()),
        confidence=float(confidence[followed].mean()) if followed.any() else float("nan"),
        extreme=float((p.max(axis=1) > EXTREME).mean()),
    )


def diagnose_model(
    prepared: Prepared, trained: Path | None, evaluated: str, *, items: int = 200, rollouts: int = 8
) -> Diagnosis:
    """The diagnosis of a trained model or adapter, or of what training starts from, on an evaluation set of a recipe.

    Raises TrainingError where the recipe has no such set, or no reasoning to replace.

    Args:
        prepared: the recipe, of reasoned mode.
        trained: a directory.
        evaluated: the set's name.
        items: rows, the first by hash.
        rollouts: a row.
    """
    recipe, pad_id = prepared.recipe, prepared.tokenizer.pad_token_id
    if recipe.mode != "reasoned":
        raise TrainingError("only a recipe of reasoned mode has reasoning to replace")
    if evaluated not in prepared.data.evaluate:
        raise TrainingError(f"no evaluation set {evaluated!r}; there is {', '.join(prepared.data.evaluate) or 'none'}")
    model = load_model(prepared, trained)
    examples = sorted(prepared.data.evaluate[evaluated], key=lambda example: example.hash)[:items]
    torch.manual_seed(recipe.seed)
    drawn = roll_out(
        model,
        examples,
        budget=recipe.rollout.max_tokens,
        group=rollouts,
        temperature=recipe.rollout.temperature,
        pad_id=pad_id,
        end_id=prepared.tokenizer.eos_token_id,
    )
    return diagnose(
        examples, drawn, lambda hosts, thoughts: read_decisions(model, hosts, thoughts, pad_id=pad_id), seed=recipe.seed
    )
