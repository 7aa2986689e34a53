"""A decision whose posterior is known exactly: noisy evidence about a hidden label."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from demur.training.direct import PromptBatch

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """A hidden label, drawn evenly, shows `length` symbols: its own with a reliability of its own, else another's.

    Unequal reliabilities keep the posterior from ties. A prompt is the symbols and a token that asks for the decision.

    Attributes:
        reliability: K values; how often a label shows its own symbol.
        length: symbols a prompt.
    """

    reliability: tuple[float, ...]
    length: int = 8
    labels: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", torch.arange(self.k, 2 * self.k))

    @property
    def k(self) -> int:
        return len(self.reliability)

    @property
    def vocabulary(self) -> int:
        """Symbols, labels, the question, and three tokens that mean nothing."""
        return 2 * self.k + 4

    def draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Symbols [n, length] and hidden labels [n]; given the symbols, a label is a draw from the posterior."""
        hidden = rng.integers(0, self.k, n)
        own = rng.random((n, self.length)) < np.array(self.reliability)[hidden][:, None]
        other = (hidden[:, None] + rng.integers(1, self.k, (n, self.length))) % self.k
        return np.where(own, hidden[:, None], other), hidden

    def posterior(self, symbols: NDArray[np.int64]) -> FloatArray:
        """The true distribution [n, K] of the hidden label given symbols [n, length]."""
        share = np.array(self.reliability)
        log_chance = np.log(np.where(np.eye(self.k) == 1, share[:, None], ((1 - share) / (self.k - 1))[:, None]))
        log_joint = log_chance[:, symbols].sum(axis=2).T
        joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        posterior: FloatArray = joint / joint.sum(axis=1, keepdims=True)
        return posterior

    def batch(self, symbols: NDArray[np.int64], gold: NDArray[np.int64]) -> PromptBatch:
        ids = torch.from_numpy(np.concatenate([symbols, np.full((len(symbols), 1), 2 * self.k)], axis=1))
        return PromptBatch(ids, torch.ones_like(ids), self.labels, torch.from_numpy(gold))

    def batches(self, size: int, seed: int) -> Iterator[PromptBatch]:
        """Fresh prompts and labels at every step, for ever: nothing can be memorised."""
        rng = np.random.default_rng(seed)
        while True:
            yield self.batch(*self.draw(size, rng))

    def decoder(self, seed: int) -> LlamaForCausalLM:
        """A small decoder with random weights."""
        return decoder(self.vocabulary, seed, layers=1, heads=2)


def decoder(
    vocabulary: int,
    seed: int,
    *,
    layers: int,
    heads: int,
    width: int = 32,
    spread: float = 0.1,
    context: int = 64,
    pad: int | None = None,
    end: int | None = None,
) -> LlamaForCausalLM:
    """A decoder with random weights of standard deviation `spread`. `pad` and `end`: ids of these tokens, if any."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=context,
            initializer_range=spread,
            pad_token_id=pad,
            bos_token_id=None,
            eos_token_id=end,
        )
    )


TASKS = {"K = 2": Evidence((0.7, 0.6)), "K = 4": Evidence((0.5, 0.45, 0.4, 0.35))}
