"""What a trained model says on evaluation sets, kept so that everything can be measured again without the model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demur.training import processes
from demur.training.data import Example
from demur.training.rollouts import read_decisions, roll_out
from demur.training.run import ADAPTER, Prepared
from demur.training.weights import load_weights

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """A model's decisions on one set, ordered by the hash of the row, so that models can be compared row by row.

    Attributes:
        hashes: [n], of the rows.
        raw: [n, K], probabilities of the labels, of the whole vocabulary.
        gold: [n], option indices.
        shares: [n, K], of each row's annotators; None unless every row has them.
    """

    hashes: NDArray[np.str_]
    raw: FloatArray
    gold: NDArray[np.int64]
    shares: FloatArray | None = None

    @property
    def probabilities(self) -> FloatArray:
        """[n, K], of the labels alone."""
        # A model may leave the labels nothing at all; then nothing is known.
        mass = self.raw.sum(axis=1, keepdims=True)
        even = np.full_like(self.raw, 1 / self.raw.shape[1])
        return np.where(mass > 0, self.raw / np.where(mass > 0, mass, 1), even)

    def rows(self, chosen: NDArray[Any]) -> "Readings":
        """Some of the rows."""
        shares = None if self.shares is None else self.shares[chosen]
        return Readings(self.hashes[chosen], self.raw[chosen], self.gold[chosen], shares)

    def joined(self, others: "list[Readings]") -> "Readings":
        """These and the rows of others, as of the folds of one data set; a row that several have is the first's."""
        parts = [self, *others]
        hashes, raw, gold = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("hashes", "raw", "gold")
        )
        shares = [part.shares for part in parts if part.shares is not None]
        whole = Readings(hashes, raw, gold, np.concatenate(shares) if len(shares) == len(parts) else None)
        # The places that are found are in the order of the hashes.
        return whole.rows(np.unique(hashes, return_index=True)[1])


def ordered(hashes: NDArray[Any], raw: FloatArray, gold: NDArray[Any], shares: FloatArray | None = None) -> Readings:
    """Readings of rows in any order."""
    return Readings(hashes, raw, gold, shares).rows(np.argsort(hashes, kind="stable"))


def load_model(prepared: Prepared, trained: Path | None) -> Any:
    """A trained model of a recipe, or what its training starts from where there is none, where it runs fastest.

    In float32 whatever it was trained in: bfloat16 tells large logits apart by steps of .06 and more.
    """
    device = processes.device()
    start = load_weights(prepared.recipe, prepared.folder, torch.float32).to(device)
    if trained is None:
        return start
    if not (trained / ADAPTER).is_file():
        return type(start).from_pretrained(trained, dtype=start.dtype).to(device)
    from peft import PeftModel

    return PeftModel.from_pretrained(start, trained)


def read_sets(prepared: Prepared, model: Any, *, batch: int = 32) -> dict[str, Readings]:
    """Reads every evaluation set of a recipe, in its mode: directly, or behind one drawn thought a row."""
    torch.manual_seed(prepared.recipe.seed)
    return {name: _read(prepared, model, examples, batch) for name, examples in prepared.data.evaluate.items()}


def _read(prepared: Prepared, model: Any, examples: tuple[Example, ...], batch: int) -> Readings:
    recipe, pad_id = prepared.recipe, prepared.tokenizer.pad_token_id
    if recipe.mode == "direct":
        raw = read_decisions(model, examples, None, pad_id=pad_id, batch=batch)
    else:
        rollouts = roll_out(
            model,
            examples,
            budget=recipe.rollout.max_tokens,
            temperature=recipe.rollout.temperature,
            pad_id=pad_id,
            end_id=prepared.tokenizer.eos_token_id,
            batch=batch,
        )
        raw = np.array([drawn[0].probabilities for drawn in rollouts])
    given = [e.shares for e in examples if e.shares is not None]
    shares = np.array(given) if len(given) == len(examples) else None
    return ordered(np.array([e.hash for e in examples]), raw, np.array([e.gold for e in examples]), shares)


def save_readings(path: Path, sets: Mapping[str, Readings], *, made_from: str) -> None:
    """Writes readings whole or not at all; `made_from` says by what recipe and data."""
    aside = path.with_suffix(".writing")
    arrays = {
        f"{name}/{part}": array
        for name, found in sets.items()
        for part in Readings.__slots__
        if (array := getattr(found, part)) is not None
    }
    with aside.open("wb") as file:
        np.savez_compressed(file, made_from=np.array(made_from), **arrays)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def load_readings(path: Path) -> tuple[dict[str, Readings], str]:
    """What `save_readings` wrote: the sets, and what they were made from."""
    with np.load(path, allow_pickle=False) as arrays:
        names = dict.fromkeys(key.rpartition("/")[0] for key in arrays.files if "/" in key)
        parts = {name: [f"{name}/{part}" for part in Readings.__slots__] for name in names}
        sets = {name: Readings(*(arrays[key] for key in keys if key in arrays)) for name, keys in parts.items()}
        return sets, str(arrays["made_from"])
