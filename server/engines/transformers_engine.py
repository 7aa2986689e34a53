"""The numerics reference: the same reads with Hugging Face transformers, one prompt at a time."""

import asyncio
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from demur.decision.prompt import TokenPrompt
from demur.decision.task import ThoughtSpec
from demur.server.engines.base import Generation, ModelIdentity, TokenRead
from demur.server.engines.identity import check_servable, identify, model_directory


class TransformersEngine:
    """Implements `Engine` on transformers in float32. Slow and simple: tests compare vLLM's readouts with it."""

    def __init__(self, model: Any, tokenizer: Any, identity: ModelIdentity) -> None:
        self.identity = identity
        self.tokenizer = tokenizer
        self._model = model
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def start(cls, model: str, *, name: str | None = None) -> "TransformersEngine":
        """Loads the model. Raises `ModelUnusable`."""
        directory = await asyncio.to_thread(model_directory, model)
        config = check_servable(directory, cpu=False)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory)
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        longest = config.get("max_position_embeddings") or config.get("n_positions") or 4096
        identity = await asyncio.to_thread(
            identify,
            directory,
            name=name,
            engine=f"transformers {version('transformers')}",
            max_model_len=min(int(longest), 4096),
            chat_template=str(tokenizer.chat_template or ""),
        )
        return cls(loaded, tokenizer, identity)

    async def read(self, prompts: Sequence[TokenPrompt], labels: Sequence[Sequence[int]]) -> list[TokenRead]:
        """See `Engine.read`."""
        async with self._one_at_a_time:
            return [
                await asyncio.to_thread(self._read, prompt, wanted)
                for prompt, wanted in zip(prompts, labels, strict=True)
            ]

    def _read(self, prompt: TokenPrompt, labels: Sequence[int]) -> TokenRead:
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt.ids]), logits_to_keep=1).logits[0, -1]
            logprobs = torch.log_softmax(logits.double(), dim=-1)[list(labels)]
        return TokenRead(np.asarray(logprobs.numpy(), dtype=np.float64), len(prompt.ids), 0)

    async def generate(self, prompt: TokenPrompt, thought: ThoughtSpec, stop_ids: Sequence[int]) -> Generation:
        """See `Engine.generate`."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._generate, prompt, thought, frozenset(stop_ids))

    def _generate(self, prompt: TokenPrompt, thought: ThoughtSpec, stop_ids: frozenset[int]) -> Generation:
        import torch
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        warpers = LogitsProcessorList()
        if thought.temperature > 0:
            warpers.append(TemperatureLogitsWarper(thought.temperature))
            if thought.top_k > 0:
                warpers.append(TopKLogitsWarper(thought.top_k))
            warpers.append(TopPLogitsWarper(thought.top_p))
        generator = torch.Generator().manual_seed(thought.seed)
        deadline = time.monotonic() + thought.max_ms / 1000
        ids: list[int] = []
        reason = "length"
        tokens, past = torch.tensor([prompt.ids]), None
        with torch.inference_mode():
            while len(ids) < thought.max_tokens:
                output = self._model(tokens, past_key_values=past, use_cache=True)
                past, logits = output.past_key_values, output.logits[:, -1]
                if thought.temperature > 0:
                    weights = torch.softmax(warpers(tokens, logits), dim=-1)
                    token = int(torch.multinomial(weights, 1, generator=generator))
                else:
                    token = int(logits.argmax())
                if token in stop_ids:
                    reason = "stop"
                    break
                ids.append(token)
                if time.monotonic() >= deadline:
                    reason = "time"
                    break
                tokens = torch.tensor([[token]])
        return Generation(tuple(ids), reason, len(prompt.ids), 0)

    async def health(self) -> None:
        """Always alive: it runs in this process."""

    async def aclose(self) -> None:
        """Nothing to end."""
