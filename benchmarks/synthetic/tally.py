"""The same decision with a thought before it: a running tally of the evidence."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.synthetic.task import Evidence, decoder
from demur.training.data import Example

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Evidence that is counted aloud: for each symbol in turn, a token that says how many of it there were so far.

    The gold label does not depend on what is thought, so the posterior given prompt and thought is the prompt's.
    """

    evidence: Evidence

    @property
    def answer(self) -> int:
        """The token that is set before a decision."""
        return 2 * self.evidence.k + 1

    @property
    def end(self) -> int:
        """The token that ends a completion."""
        return 2 * self.evidence.k + 2

    @property
    def pad(self) -> int:
        """The token that fills up."""
        return 2 * self.evidence.k + 3

    @property
    def vocabulary(self) -> int:
        """The direct task's, and a token for every count of every symbol."""
        return self.evidence.vocabulary + self.evidence.k * self.evidence.length

    def thoughts(self, symbols: Ids) -> Ids:
        """The true tallies [n, length] of symbols [n, length]."""
        counts = (np.eye(self.evidence.k, dtype=np.int64)[symbols]).cumsum(axis=1)
        so_far = np.take_along_axis(counts, symbols[:, :, None], axis=2)[:, :, 0]
        tallies: Ids = self.evidence.vocabulary + symbols * self.evidence.length + so_far - 1
        return tallies

    def sequences(self, symbols: Ids, thoughts: Ids, labels: Ids) -> torch.Tensor:
        """Prompt, thought, answer token and label [n, 2 length + 3]."""
        n, k = len(symbols), self.evidence.k
        parts = (symbols, np.full((n, 1), 2 * k), thoughts, np.full((n, 1), self.answer), k + labels[:, None])
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def taught(self, size: int, rng: np.random.Generator, noise: float) -> Iterator[torch.Tensor]:
        """Fresh sequences with true tallies for ever; a share `noise` of the labels is drawn evenly instead."""
        while True:
            symbols, gold = self.evidence.draw(size, rng)
            other = rng.integers(0, self.evidence.k, size)
            labels = np.where(rng.random(size) < noise, other, gold)
            yield self.sequences(symbols, self.thoughts(symbols), labels)

    def examples(self, symbols: Ids, gold: Ids) -> list[Example]:
        """Prompts as the trainer takes them."""
        k = self.evidence.k
        labels = tuple(range(k, 2 * k))
        return [
            Example(
                hash=str(row),
                gold=int(gold[row]),
                prompt=(*symbols[row].tolist(), 2 * k),
                label_ids=labels,
                sequences=tuple((label,) for label in labels),
                after_thought=(self.answer,),
                stop_ids=(self.end,),
            )
            for row in range(len(symbols))
        ]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One word a token."""
        words = [f"t{number}" for number in range(self.vocabulary)]
        core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token=words[self.pad], eos_token=words[self.end], padding_side="left"
        )

    def decoder(self, seed: int, *, width: int = 32, spread: float = 0.1, context: int = 64) -> LlamaForCausalLM:
        """A small decoder with random weights of standard deviation `spread`; counting takes two layers."""
        return decoder(
            self.vocabulary,
            seed,
            layers=2,
            heads=4,
            width=width,
            spread=spread,
            context=context,
            pad=self.pad,
            end=self.end,
        )
