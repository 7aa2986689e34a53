"""The awaiting client, on asyncio."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from demur.clients import _calls, _loop_calls
from demur.clients._answers import Item
from demur.clients._calls import Ask, Call, JsonInput, NewPolicy
from demur.clients._config import DEFAULT_TIMEOUT, resolve
from demur.clients._errors import ConnectionFailed, DemurClientError, Timeout, Unavailable
from demur.clients._exchange import MAX_REQUESTS, Pause, Send, exchange
from demur.clients._loop_calls import Kind, Label
from demur.clients._loop_models import (
    BundleVersion,
    Claim,
    LabelResult,
    Release,
    Renewal,
    ReviewItem,
    StoredDecision,
)
from demur.clients._many import Batch, batches
from demur.clients._models import Answer, ModelInfo, ShadowPolicy, TaskCalibration, TaskInfo, TaskPolicy, Version
from demur.clients._retry import RetryPolicy

T = TypeVar("T")


class AsyncClient:
    """An awaiting client for one event loop. Parameters and methods as of `Client`; close it with `aclose`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = resolve(base_url, api_key, timeout, retry)
        self._http = httpx.AsyncClient(transport=transport)
        self._places = asyncio.Semaphore(MAX_REQUESTS)
        self._clock = clock
        self._sleep = sleep

    async def decide(self, value: JsonInput, /, **ask: Unpack[Ask]) -> Answer:
        """Decides one input. Keywords as in `Ask`. Raises `DemurClientError`."""
        return await self._run(_calls.decide(value, ask))

    async def decide_batch(self, values: Sequence[JsonInput], /, **ask: Unpack[Ask]) -> list[Item]:
        """As `Client.decide_batch`."""
        return await self._run(_calls.decide_batch(values, ask))

    def decide_many(
        self, inputs: Iterable[JsonInput], /, *, batch_size: int = 32, concurrency: int = 4, **ask: Unpack[Ask]
    ) -> AsyncIterator[Item]:
        """As `Client.decide_many`; leaving the iteration early (and closing it) cancels the batches under way."""
        return self._stream(batches(inputs, batch_size, concurrency), concurrency, ask)

    async def _stream(self, ahead: Iterator[Batch], concurrency: int, ask: Ask) -> AsyncIterator[Item]:
        pending: deque[asyncio.Task[list[Item]]] = deque()
        try:
            while True:
                room = concurrency - len(pending)
                pending.extend(asyncio.create_task(self._batch(batch, ask)) for batch in itertools.islice(ahead, room))
                if not pending:
                    return
                items = await pending[0]
                pending.popleft()
                for item in items:
                    yield item
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def tasks(self) -> list[TaskInfo]:
        """The registered tasks."""
        return await self._run(_calls.tasks())

    async def task(self, name: str) -> TaskInfo:
        """One registered task. Raises `NotFound`."""
        return await self._run(_calls.task(name))

    async def calibration(self, name: str) -> TaskCalibration:
        """What a task's verdicts rest on. Raises `NotFound`."""
        return await self._run(_calls.calibration(name))

    async def diagram(self, name: str) -> str:
        """A task's reliability diagram, as SVG. Raises `NotFound` where there is none."""
        return await self._run(_calls.diagram(name))

    async def policy(self, name: str) -> TaskPolicy:
        """The policy in force for a task. Raises `NotFound`."""
        return await self._run(_calls.policy(name))

    async def set_policy(self, name: str, *, version: int | None = None, **policy: Unpack[NewPolicy]) -> TaskPolicy:
        """Replaces a task's policy; needs an admin key. Asked once, without retries.

        Raises `Conflict` if `version` is given and another one is in force, `InvalidRequest`, `PermissionDenied`.
        """
        return await self._run(_calls.set_policy(name, policy, version))

    async def shadow_policy(self, name: str) -> ShadowPolicy:
        """The policy that is tried beside a task's own. Raises `NotFound` where there is none."""
        return await self._run(_calls.shadow_policy(name))

    async def set_shadow_policy(self, name: str, **policy: Unpack[NewPolicy]) -> ShadowPolicy:
        """Lets a policy judge beside a task's own, without effect; needs an admin key."""
        return await self._run(_calls.set_shadow_policy(name, policy))

    async def end_shadow_policy(self, name: str) -> None:
        """Ends that; needs an admin key."""
        return await self._run(_calls.end_shadow_policy(name))

    async def feedback(
        self,
        id: str,  # noqa: A002
        label: str,
        *,
        source: str | None = None,
        at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> LabelResult:
        """As `Client.feedback`."""
        return await self._run(_loop_calls.feedback(Label(id=id, label=label, source=source, at=at), idempotency_key))

    async def feedback_many(
        self,
        labels: Iterable[Label | tuple[str, str]],
        *,
        batch_size: int = 100,
        idempotency_key: str | None = None,
    ) -> list[LabelResult]:
        """As `Client.feedback_many`."""
        return [
            result
            for call in _loop_calls.feedback_batches(labels, batch_size, idempotency_key)
            for result in await self._run(call)
        ]

    async def decision(self, id: str) -> StoredDecision | ReviewItem:  # noqa: A002
        """As `Client.decision`."""
        return await self._run(_loop_calls.decision(id))

    async def review(
        self, task: str | None = None, kind: Kind | None = None, *, page_size: int = 50
    ) -> AsyncIterator[ReviewItem]:
        """As `Client.review`."""
        after: str | None = None
        while True:
            page = await self._run(_loop_calls.review(task, kind, after, page_size))
            for item in page.items:
                yield item
            after = page.following
            if after is None:
                return

    async def claim(self, ids: Sequence[str], *, seconds: int = 600) -> list[Claim]:
        """Takes items for oneself, so that nobody else is asked to label them meanwhile."""
        return await self._run(_loop_calls.claim(ids, seconds))

    async def release(self, ids: Sequence[str]) -> list[Release]:
        """Gives claimed items back."""
        return await self._run(_loop_calls.release(ids))

    async def bundles(self, name: str) -> list[BundleVersion]:
        """The versions of a task's bundle, and which is in force. Raises `NotFound`."""
        return await self._run(_loop_calls.bundles(name))

    async def recertify(self, name: str, *, deadline: float | None = None) -> Renewal:
        """As `Client.recertify`."""
        return await self._run(_loop_calls.renew(name, "recertify", deadline))

    async def recalibrate(self, name: str, *, deadline: float | None = None) -> Renewal:
        """As `Client.recalibrate`."""
        return await self._run(_loop_calls.renew(name, "recalibrate", deadline))

    async def rollback(self, name: str, version: int) -> BundleVersion:
        """Serves an earlier version again, with the state of its certificate; needs an admin key. Asked once."""
        return await self._run(_loop_calls.rollback(name, version))

    async def models(self) -> list[ModelInfo]:
        """The model names that the server answers to."""
        return await self._run(_calls.models())

    async def version(self) -> Version:
        """The server's version."""
        return await self._run(_calls.version())

    async def ready(self) -> bool:
        """Whether the server takes decisions now. Asked once; a server that cannot be reached is not ready."""
        return await self._probe("/readyz")

    async def healthy(self) -> bool:
        """Whether the server process answers. Asked once; a server that cannot be reached is not healthy."""
        return await self._probe("/healthz")

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({str(self._settings.base_url)!r})"

    async def _probe(self, path: str) -> bool:
        try:
            return await self._run(_calls.probe(path))
        except (ConnectionFailed, Timeout, Unavailable):
            return False

    async def _batch(self, batch: Batch, ask: Ask) -> list[Item]:
        try:
            return batch.outcomes(await self._run(batch.call(ask)))
        except DemurClientError as error:
            return batch.failures(error)

    async def _run(self, call: Call[T]) -> T:
        steps = exchange(call, self._settings, self._clock)
        reply: httpx.Response | httpx.RequestError | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                answer: T = done.value
                return answer
            reply = None
            if isinstance(step, Pause):
                await self._sleep(step.seconds)
                continue
            try:
                reply = await self._send(step)
            except httpx.RequestError as error:
                reply = error

    async def _send(self, step: Send) -> httpx.Response:
        # The timeouts of httpx bound each wait for a piece of the answer, not all of them together.
        try:
            async with asyncio.timeout(step.ends - self._clock()), self._places:
                return await self._http.send(step.build())
        except TimeoutError:
            raise httpx.ReadTimeout("no whole answer in time") from None
