"""Decision-token reads on vLLM's `AsyncLLM`, in this process (its workers are child processes)."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from demur.decision.prompt import TokenPrompt
from demur.decision.task import ThoughtSpec
from demur.server.engines import watch
from demur.server.engines.adapter import Adapter, check_adapter
from demur.server.engines.base import Generation, TokenRead
from demur.server.engines.identity import ModelUnusable, check_servable, identify, model_directory
from demur.server.engines.vllm_plugin import LABEL_LIMIT, is_loaded
from demur.server.engines.vllm_setup import VllmSettings, configure, on_cpu, prepare_environment, vllm_version
from demur.server.errors import EngineUnavailable

_STOCK_LIMIT = 128
_PROBE_LABELS = 129


class EngineNotStarted(ModelUnusable):
    """vLLM took the model and did not come up all the same; starting again may help, as when memory was short."""


class VllmEngine:
    """Implements `Engine`. Make one with `await VllmEngine.start(settings)`."""

    def __init__(self, settings: VllmSettings, llm: Any, tokenizer: Any, identity: Any, processes: list[Any]) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        self.settings = settings
        self.identity = identity
        self.tokenizer = tokenizer
        self.label_limit = _STOCK_LIMIT
        self.failure: str | None = None
        self.processes = processes
        self.heartbeat = watch.Heartbeat()
        self._llm = llm
        self._lora: Any = None
        self._ids = count()
        self._sampling = SamplingParams
        self._tokens_input: Callable[..., Any] = tokens_input
        self._final_only = RequestOutputKind.FINAL_ONLY
        self._delta = RequestOutputKind.DELTA
        self._closed = False

    @classmethod
    async def start(cls, settings: VllmSettings) -> "VllmEngine":
        """Starts vLLM (20 to 60 s on a CPU), and probes it.

        Raises `ModelUnusable` with the reason, `EngineNotStarted` where that may be another one the next time.
        """
        directory = await asyncio.to_thread(model_directory, settings.model)
        config = check_servable(directory, cpu=on_cpu())
        adapter = None if settings.adapter is None else check_adapter(settings.adapter, directory, config)
        prepare_environment(settings)
        # A worker with vLLM's own limit does not refuse more labels than that: it fails.
        settings = replace(settings, wide_reads=settings.wide_reads and is_loaded())
        before = {process.pid for process in watch.children()}
        # In threads: it takes a minute, and whoever serves answers probes meanwhile.
        try:
            configured, tokenizer = await asyncio.to_thread(configure, settings, directory, config, adapter)
        except Exception as error:  # whatever vLLM says no with
            raise ModelUnusable(f"vLLM cannot serve {directory.name}: {_first_line(error)}") from error
        try:
            llm = await asyncio.to_thread(_start_vllm, configured)
        except BaseException as error:
            watch.kill([process for process in watch.children() if process.pid not in before])
            if not isinstance(error, Exception):
                raise
            raise EngineNotStarted(f"vLLM did not start with {directory.name}: {_first_line(error)}") from error
        processes = [process for process in watch.children() if process.pid not in before]
        try:
            identity = await asyncio.to_thread(
                identify,
                directory,
                name=settings.name,
                engine=f"vllm {vllm_version()}",
                max_model_len=llm.model_config.max_model_len,
                chat_template=str(tokenizer.chat_template or ""),
                adapter=None if adapter is None else adapter.path,
                dtype=str(llm.model_config.dtype).removeprefix("torch."),
            )
            engine = cls(settings, llm, tokenizer, identity, processes)
            engine._listen()
            await watch.unless(engine.failed(), engine._begin(adapter))
        except EngineUnavailable as error:
            watch.kill(processes)  # a dead or stopped engine would not answer a polite request
            llm.shutdown()
            raise EngineNotStarted(f"vLLM failed as it started with {directory.name}: {error.detail}") from error
        except BaseException:
            llm.shutdown()
            watch.kill(processes)
            raise
        return engine

    def _listen(self) -> None:
        """Every engine step that reports statistics counts as a sign of life, also when no request ends in it."""
        manager = self._llm.logger_manager
        record, beat = manager.record, self.heartbeat.beat

        def recorded(*args: Any, **kwargs: Any) -> None:
            beat()
            record(*args, **kwargs)

        manager.record = recorded

    async def _begin(self, adapter: Adapter | None) -> None:
        """What is done before the engine is used."""
        if adapter is not None:
            await self._adapt(adapter)
        await self._probe()

    async def _adapt(self, adapter: Adapter) -> None:
        """Loads the adapter, which every request then carries."""
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        self._lora = LoRARequest(adapter.path.name, 1, str(adapter.path))
        try:
            await self._llm.add_lora(self._lora)
        except EngineDeadError as error:
            raise EngineUnavailable(f"the engine failed: {_first_line(error)}") from error
        except Exception as error:  # whatever vLLM says no with
            raise ModelUnusable(f"vLLM cannot serve the adapter {adapter.path}: {_first_line(error)}") from error

    async def _probe(self) -> None:
        """One real read of few labels, which must work, and one of 129, which decides whether wide reads do."""
        prompt = TokenPrompt((self.tokenizer.bos_token_id or 0, 1, 2, 3))
        await self.read([prompt], [[0, 1]])
        if not self.settings.wide_reads or len(self.tokenizer) < _PROBE_LABELS:
            return
        self.label_limit = LABEL_LIMIT
        try:
            (read,) = await self.read([prompt], [list(range(_PROBE_LABELS))])
        except EngineUnavailable:
            raise
        except Exception:  # whatever vLLM says no with
            self.label_limit = _STOCK_LIMIT
            return
        if not np.isfinite(read.logprobs).all():
            self.label_limit = _STOCK_LIMIT

    async def read(self, prompts: Sequence[TokenPrompt], labels: Sequence[Sequence[int]]) -> list[TokenRead]:
        """See `Engine.read`. More labels than one request may ask for are read in several, and merged."""
        if len(prompts) == 1:
            return [await self._read(prompts[0], labels[0])]
        return await _together([self._read(*pair) for pair in zip(prompts, labels, strict=True)])

    async def _read(self, prompt: TokenPrompt, labels: Sequence[int]) -> TokenRead:
        limit = self.label_limit
        if len(labels) <= limit:
            return await self._request(prompt, list(labels))
        parts = [list(labels[start : start + limit]) for start in range(0, len(labels), limit)]
        first = await self._request(prompt, parts[0])  # alone, so that the others find the prompt cached
        rest = await _together([self._request(prompt, part) for part in parts[1:]])
        merged = np.concatenate([first.logprobs, *(read.logprobs for read in rest)])
        return TokenRead(merged, first.prompt_tokens, first.cached_tokens)

    async def _request(self, prompt: TokenPrompt, labels: list[int]) -> TokenRead:
        parameters = self._sampling(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=labels,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            output_kind=self._final_only,
            skip_clone=True,
        )
        final = None
        async for output in self._run(prompt, parameters):
            final = output
        if final is None or not final.outputs or not final.outputs[0].logprobs:
            raise EngineUnavailable("the engine ended a read without an answer", retry_after=1)
        flat = final.outputs[0].logprobs
        # Position 0 holds the sampled token; the labels follow in the order asked, then padding.
        asked = slice(1, len(labels) + 1)
        if flat.token_ids[asked] != labels:
            raise EngineUnavailable("the engine answered for other tokens than those asked", retry_after=1)
        return TokenRead(
            np.array(flat.logprobs[asked], dtype=np.float64), len(prompt.ids), final.num_cached_tokens or 0
        )

    async def _run(self, prompt: TokenPrompt, parameters: Any, request_id: str | None = None) -> Any:
        """vLLM's outputs for one request; its troubles as `EngineUnavailable`. Cancelling aborts the request."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._refuse_if_failed()
        tokens = self._tokens_input(list(prompt.ids), cache_salt=prompt.cache_salt)
        self.heartbeat.begin()
        try:
            async for output in self._llm.generate(
                tokens, parameters, request_id or f"r{next(self._ids)}", lora_request=self._lora
            ):
                self.heartbeat.beat()
                yield output
        except (EngineDeadError, EngineGenerateError) as error:
            self._refuse_if_failed()
            raise EngineUnavailable(f"the engine failed: {_first_line(error)}", retry_after=5) from error
        finally:
            self.heartbeat.end()

    async def generate(self, prompt: TokenPrompt, thought: ThoughtSpec, stop_ids: Sequence[int]) -> Generation:
        """See `Engine.generate`. After `max_ms` the request is aborted, and vLLM returns what it has."""
        request_id = f"t{next(self._ids)}"
        parameters = self._sampling(
            max_tokens=thought.max_tokens,
            temperature=thought.temperature,
            top_p=thought.top_p,
            top_k=thought.top_k,
            seed=thought.seed,
            stop_token_ids=list(stop_ids),
            ignore_eos=True,  # where that ends a thought, it is among the stop ids
            detokenize=False,
            output_kind=self._delta,
        )
        ids: list[int] = []
        timed_out = False
        finish: str | None = None
        cached = 0

        def stop() -> None:
            nonlocal timed_out
            timed_out = True
            aborts.append(asyncio.ensure_future(self._llm.abort(request_id)))

        aborts: list[asyncio.Future[None]] = []
        timer = asyncio.get_running_loop().call_later(thought.max_ms / 1000, stop)
        try:
            async for output in self._run(prompt, parameters, request_id):
                ids.extend(output.outputs[0].token_ids)
                finish = output.outputs[0].finish_reason or finish
                cached = output.num_cached_tokens or cached
        finally:
            timer.cancel()
            if aborts:
                await asyncio.gather(*aborts, return_exceptions=True)
        while ids and ids[-1] in stop_ids:
            ids.pop()
        reason = "stop" if finish == "stop" else "time" if timed_out else "length"
        return Generation(tuple(ids), reason, len(prompt.ids), cached)

    async def health(self) -> None:
        """Raises `EngineUnavailable` when a process is gone or stopped, or the engine gave up."""
        self._refuse_if_failed()
        reason = "the engine reported a fatal error" if self._llm.errored else watch.fault(self.processes)
        if reason is not None:
            raise EngineUnavailable(reason)

    async def failed(self) -> str:
        """Returns why, once the engine is dead or hung. Everyone who waits for a read then gets `EngineUnavailable`."""
        reason = await watch.watch(
            self.processes, self.heartbeat, lambda: self._llm.errored, self.settings.hang_timeout
        )
        self.fail(reason)
        return reason

    def fail(self, reason: str) -> None:
        """Declares the engine unusable: waiting and later reads raise `EngineUnavailable`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self.failure = self.failure or reason
        self._llm.output_processor.propagate_error(EngineDeadError())

    def _refuse_if_failed(self) -> None:
        if self.failure is not None:
            raise EngineUnavailable(self.failure, retry_after=5)

    async def aclose(self) -> None:
        """Ends vLLM, and whatever of its processes is left. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.failure is not None:  # a dead or stopped engine would not answer a polite request
            await asyncio.to_thread(watch.kill, self.processes)
        self._llm.shutdown()
        await asyncio.to_thread(watch.kill, self.processes)
        # Its finalizer would do the same once more at interpreter exit, when what it needs is gone.
        type(self._llm).__del__ = lambda _: None


def _start_vllm(configured: Any) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_vllm_config(configured)


async def _together(reads: Sequence[Coroutine[Any, Any, TokenRead]]) -> list[TokenRead]:
    """All reads at once. The first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(read) for read in reads]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
