"""The protocol that every engine implements."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from demur.decision.prompt import TokenPrompt
from demur.decision.task import ThoughtSpec


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What is running, for answers and for pinning bundles. Hashes are hex SHA-256.

    `trained_on` are those of the rows that the checkpoint was trained on, which are no evidence about it.
    """

    name: str
    weights: str
    tokenizer: str
    chat_template: str
    engine: str
    max_model_len: int
    trained_on: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRead:
    """One read: `logprobs` float64 [n], natural logarithm over the full vocabulary, in the order of the ids asked."""

    logprobs: NDArray[np.float64]
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A thought: its token ids (without the token that ended it) and why it ended: `stop`, `length` or `time`."""

    ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int


class Engine(Protocol):
    """Reads decision-token log-probabilities. Knows no wire, no task and no policy."""

    identity: ModelIdentity
    #: A transformers tokenizer; shared, so never mutated.
    tokenizer: Any

    async def read(self, prompts: Sequence[TokenPrompt], labels: Sequence[Sequence[int]]) -> list[TokenRead]:
        """Log-probabilities of `labels[i]` (1 to 256 token ids) as the token after `prompts[i]`.

        Cancelling the call aborts its requests. Raises `EngineUnavailable` when the engine is dead.
        """
        ...

    async def generate(self, prompt: TokenPrompt, thought: ThoughtSpec, stop_ids: Sequence[int]) -> Generation:
        """Samples a thought until a stop id, `max_tokens` or `max_ms`."""
        ...

    async def health(self) -> None:
        """Returns when the engine is alive; raises `EngineUnavailable` otherwise."""
        ...

    async def aclose(self) -> None:
        """Ends the engine and its processes. Idempotent."""
        ...
