"""The decide pipeline: request -> prompt tokens -> engine -> readout -> policy -> decision."""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from demur.decision.errors import InputTooLongError, LabelError, UnusableModelError
from demur.decision.prompt import CompiledPrompt, PromptBuilder, RenderedPrompt, TokenPrompt
from demur.decision.readout import Readout
from demur.decision.task import DecisionSpec, Mode, Task
from demur.server.bundles import ServedBundle
from demur.server.calibrated import Applied, Calibrated
from demur.server.engines.base import Engine, Generation, TokenRead
from demur.server.errors import EngineUnavailable, Fault, InputTooLong, Invalid
from demur.server.policy import Evidence, Judgement, judge
from demur.server.types import DecideRequest, Decision, Shadow, Standing, Timings, Usage

_log = logging.getLogger("demur.decide")

#: Compiled inline questions that are kept; registered tasks are kept besides.
_KEPT_QUESTIONS = 256
#: Characters beyond which an input, or an inline question, is tokenized off the event loop.
_LONG_TEXT = 4_096
#: Reads of one decision that the engine has at once: thousands of copies of a prompt would fill memory and its queue.
_READS_AT_ONCE = 256


@dataclass(slots=True)
class _Meter:
    """What one decision has used so far."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    thought_tokens: int = 0
    reads: int = 0
    engine_seconds: float = 0.0

    def count(self, reads: Iterable[TokenRead | Generation]) -> None:
        for read in reads:
            self.prompt_tokens += read.prompt_tokens
            self.cached_tokens += read.cached_tokens
            self.reads += 1


@dataclass(slots=True, eq=False)
class _Compiled:
    """A compiled question and, once it was needed, its labels' log-probabilities under a content-free input."""

    prompt: CompiledPrompt
    prior: NDArray[np.float64] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tasks that were compiled and bundles that were held against them, waiting to be warmed and adopted."""

    compiled: dict[DecisionSpec, _Compiled]
    bundles: Mapping[str, ServedBundle]


class DecidePipeline:
    """Implements `Decider` on an engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_input_tokens: int,
        standing: Callable[[str], Standing] = lambda _: Standing.VALID,
    ) -> None:
        """`standing` says how a certificate stands, by its key; without it nobody watches them."""
        self.engine = engine
        self.standing = standing
        self.prompts = PromptBuilder(engine.tokenizer)
        self._context = engine.identity.max_model_len
        self._max_input_tokens = max_input_tokens
        # Its own threads: what keeps certificates known must not wait behind long inputs.
        self._threads = ThreadPoolExecutor(thread_name_prefix="tokenize")
        self._questions: OrderedDict[DecisionSpec, _Compiled] = OrderedDict()
        self._registered: dict[DecisionSpec, _Compiled] = {}
        self._bundles: Mapping[str, ServedBundle] = {}
        self._shadows: Mapping[str, ServedBundle] = {}

    def prepare(self, tasks: Iterable[Task], bundles: Mapping[str, Calibrated] | None = None) -> Prepared:
        """Compiles tasks, and holds their bundles, given by task name, against them and the model.

        Raises LabelError or UnusableModelError, naming the task, and changes nothing. A bundle that does not fit is
        prepared all the same: its task then defers.
        """
        served: dict[str, ServedBundle] = {}
        compiled: dict[DecisionSpec, _Compiled] = {}
        for task in tasks:
            try:
                compiled[task.spec] = self._registered.get(task.spec) or self._new(task.spec)
            except LabelError as error:
                raise LabelError(f"task {task.name}: {error}", error.options, task=task.name) from None
            except UnusableModelError as error:
                raise UnusableModelError(f"task {task.name}: {error}") from None
            prompt = compiled[task.spec].prompt
            if prompt.least_tokens > self._context:
                raise UnusableModelError(
                    f"task {task.name}: question, options and thought take {prompt.fixed_tokens} tokens, which leaves "
                    f"no room for an input in the context of {self._context}"
                )
            if bundles and task.name in bundles:
                served[task.name] = self._served(bundles[task.name], prompt, task)
        return Prepared(compiled, served)

    async def warm(self, prepared: Prepared) -> None:
        """Reads every prepared task once, so that its prefix is cached."""
        for compiled in prepared.compiled.values():
            prompt = compiled.prompt
            await self._read(prompt, prompt.render_content_free(), None, _Meter(), np.zeros(len(prompt.plan.labels)))

    def adopt(self, prepared: Prepared) -> None:
        """Keeps prepared tasks and bundles in place of those before."""
        self._registered, self._bundles = prepared.compiled, prepared.bundles

    def serve_bundle(self, task: Task, bundle: Calibrated) -> ServedBundle:
        """Serves a registered task with this bundle from now on. A bundle that does not fit makes it defer."""
        compiled = self._registered.get(task.spec) or self._new(task.spec)
        served = self._served(bundle, compiled.prompt, task)
        self._bundles = {**self._bundles, task.name: served}
        return served

    def serve_shadows(self, tasks: Iterable[Task], bundles: Mapping[str, Calibrated]) -> None:
        """Lets these bundles judge beside the tasks' own from now on; what they say is counted and touches nothing."""
        self._shadows = {
            task.name: self._served(bundles[task.name], self._registered[task.spec].prompt, task)
            for task in tasks
            if task.name in bundles
        }

    def room(self, prompt: CompiledPrompt) -> int:
        """Tokens of input that the context and the server's own limit leave; none or less where nothing fits."""
        return min(self._context - prompt.fixed_tokens, self._max_input_tokens)

    def _served(self, bundle: Calibrated, prompt: CompiledPrompt, task: Task) -> ServedBundle:
        return ServedBundle.of(bundle, prompt, self.engine.identity, self.room(prompt), task.slice_by)

    async def decide(self, request: DecideRequest) -> Decision:
        """See `Decider.decide`."""
        start = time.perf_counter()
        meter = _Meter()
        compiled = await self._compiled(request.spec)
        prompt = compiled.prompt
        rendered = await self._render(prompt, request.input)
        ids = rendered.ids
        thought: Generation | None = None
        if request.spec.mode is Mode.REASONED:
            thought = await self._think(prompt, ids, request, meter)
            ids = prompt.close_thought(ids, thought.ids)
        prior = await self._prior(compiled, meter) if prompt.plan.needs_prior else None
        readout = await self._read(prompt, ids, request.cache_salt, meter, prior)
        served = None if request.task is None else self._bundles.get(request.task.name)
        calibrated, applied, judgement = self._judge(request, prompt, readout, served)
        total = time.perf_counter() - start
        return Decision(
            id=new_id(),
            request=request,
            index=readout.decision if applied is None else applied.index,
            verdict=judgement.verdict,
            reason=judgement.reason,
            probabilities=readout.probabilities if applied is None else applied.probabilities,
            label_mass=readout.label_mass,
            model=self.engine.identity.name,
            readout=prompt.plan.kind.value,
            readout_note=prompt.plan.note,
            usage=Usage(meter.prompt_tokens, meter.cached_tokens, meter.thought_tokens, meter.reads),
            timings=Timings(total * 1e3, meter.engine_seconds * 1e3),
            thought=self.engine.tokenizer.decode(thought.ids) if thought and request.explain else None,
            thought_finish=thought.finish_reason if thought else None,
            truncated=rendered.truncated,
            p_correct=None if applied is None else applied.p_correct,
            score=None if applied is None else applied.score,
            rule=judgement.rule,
            reason_detail=judgement.detail,
            calibration=None if calibrated is None else calibrated.info,
            certificate=judgement.certificate,
            guarantee=judgement.guarantee,
            slice=request.slice,
            reading=readout,
            shadow=self._shadow(request, prompt, readout, served),
        )

    def _shadow(
        self, request: DecideRequest, prompt: CompiledPrompt, readout: Readout, served: ServedBundle | None
    ) -> Shadow | None:
        """What the shadows of the task make of a readout: a bundle, a policy, or one on the other."""
        bundle = None if request.task is None else self._shadows.get(request.task.name)
        policy = request.shadow
        if bundle is None and policy is None:
            return None
        asked = request if policy is None else replace(request, policy=policy.policy)
        try:
            # The certificate of a shadow bundle is not watched: none of its decisions is served.
            _, applied, judgement = self._judge(asked, prompt, readout, bundle or served, watched=bundle is None)
        except Exception:
            _log.exception("a shadow could not judge")
            return None
        return Shadow(
            readout.decision if applied is None else applied.index,
            judgement.verdict,
            judgement.reason,
            None if applied is None else applied.p_correct,
            None if bundle is None else bundle.calibrated.bundle.id,
            None if policy is None else policy.id,
        )

    def _judge(
        self,
        request: DecideRequest,
        prompt: CompiledPrompt,
        readout: Readout,
        served: ServedBundle | None,
        *,
        watched: bool = True,
    ) -> tuple[Calibrated | None, Applied | None, Judgement]:
        """What a bundle that fits makes of a readout, and the verdict. `watched`: its certificate is."""
        mismatches = () if served is None else served.mismatches_of(prompt)
        calibrated = None if served is None or mismatches else served.calibrated
        applied = None if calibrated is None else calibrated.apply(readout)
        guarantee = (
            None if calibrated is None or calibrated.guarantee is None else calibrated.guarantee.of(request.slice)
        )
        evidence = Evidence(
            readout=prompt.plan.kind,
            probability=float(readout.probabilities[readout.decision]),
            label_mass=readout.label_mass,
            calibrated=calibrated,
            applied=applied,
            mismatches=mismatches,
            standing=self.standing(guarantee.key) if watched and guarantee is not None else Standing.VALID,
            slice=request.slice,
        )
        return calibrated, applied, judge(request.policy, request.override, evidence)

    async def _compiled(self, spec: DecisionSpec) -> _Compiled:
        if (registered := self._registered.get(spec)) is not None:
            return registered
        if (known := self._questions.get(spec)) is not None:
            self._questions.move_to_end(spec)
            return known
        try:
            if _characters(spec) > _LONG_TEXT:
                compiled = await asyncio.get_running_loop().run_in_executor(self._threads, self._new, spec)
            else:
                compiled = self._new(spec)
        except LabelError as error:
            faults = tuple(Fault(("options", option), str(error), "label_collision") for option in error.options)
            raise Invalid(str(error), faults=faults) from None
        except UnusableModelError as error:
            raise Invalid(str(error)) from None
        if compiled.prompt.least_tokens > self._context:
            return compiled  # no input fits, so it is not worth its memory
        compiled = self._questions.setdefault(spec, compiled)  # another request may have been faster
        if len(self._questions) > _KEPT_QUESTIONS:
            self._questions.popitem(last=False)
        return compiled

    def _new(self, spec: DecisionSpec) -> _Compiled:
        return _Compiled(self.prompts.compile(spec))

    async def _render(self, prompt: CompiledPrompt, text: str) -> RenderedPrompt:
        limit = prompt.fixed_tokens + self.room(prompt)
        if prompt.least_tokens > self._context:  # then not even an empty one
            limit = prompt.fixed_tokens - 1
        try:
            if len(text) > _LONG_TEXT:
                return await asyncio.get_running_loop().run_in_executor(self._threads, prompt.render, text, limit)
            return prompt.render(text, limit)
        except InputTooLongError as error:
            raise InputTooLong(str(error), tokens=error.tokens, allowed=error.allowed) from None

    async def _think(
        self, prompt: CompiledPrompt, ids: tuple[int, ...], request: DecideRequest, meter: _Meter
    ) -> Generation:
        start = time.perf_counter()
        thought = await self.engine.generate(
            TokenPrompt(ids, request.cache_salt), request.spec.thought, prompt.stop_ids
        )
        meter.engine_seconds += time.perf_counter() - start
        meter.count([thought])
        meter.thought_tokens = len(thought.ids)
        return thought

    async def _read(
        self,
        prompt: CompiledPrompt,
        ids: tuple[int, ...],
        salt: str | None,
        meter: _Meter,
        prior: NDArray[np.float64] | None,
    ) -> Readout:
        plan = prompt.plan
        start = time.perf_counter()
        reads: list[TokenRead] = []
        for first in range(0, len(plan.reads), _READS_AT_ONCE):
            some = plan.reads[first : first + _READS_AT_ONCE]
            prompts = [TokenPrompt(ids + read.suffix, salt) for read in some]
            reads += await self.engine.read(prompts, [read.ids for read in some])
        meter.engine_seconds += time.perf_counter() - start
        meter.count(reads)
        try:
            return plan.combine([read.logprobs for read in reads], prior)
        except ValueError as error:
            raise EngineUnavailable(f"the engine returned an unusable read: {error}") from error

    async def _prior(self, compiled: _Compiled, meter: _Meter) -> NDArray[np.float64]:
        """The labels' log-probabilities under a content-free input, read once per question."""
        async with compiled.lock:
            if compiled.prior is None:
                prompt = compiled.prompt
                ids = prompt.render_content_free()
                zero = np.zeros(len(prompt.plan.labels))
                compiled.prior = (await self._read(prompt, ids, None, meter, zero)).logprobs
            return compiled.prior


def _characters(spec: DecisionSpec) -> int:
    question = spec.question
    return len(question.text) + sum(len(option.name) + len(option.description or "") for option in question.options)


def new_id() -> str:
    """A decision id: the server's own, sortable by time, not to be guessed."""
    return f"dec_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
