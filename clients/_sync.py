"""The blocking client."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar, Unpack, cast

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


class _Bounded(httpx.SyncByteStream):
    """A stream that fails at the first piece behind the call's end; httpx bounds the wait for each piece only."""

    def __init__(self, stream: httpx.SyncByteStream, over: Callable[[], bool]) -> None:
        self._stream = stream
        self._over = over

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if self._over():
                raise httpx.ReadTimeout("no whole answer in time")
            yield piece

    def close(self) -> None:
        self._stream.close()


class Client:
    """A blocking client; safe to share between threads. Close it, or use it as a context manager.

    Parameters
    ----------
    base_url : where the server is; `DEMUR_URL`, then http://127.0.0.1:8000 if not given.
    api_key : sent as a bearer token; `DEMUR_API_KEY` if not given, none if that is unset.
    timeout : seconds for a call, retries included, where the call sets no `deadline`.
    retry : how often and after how long a call is tried again.
    transport : an `httpx` transport, for proxies, client certificates and tests.
    clock, sleep : time in seconds and how to wait; tests replace them.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = resolve(base_url, api_key, timeout, retry)
        self._http = httpx.Client(transport=transport)
        self._places = threading.Semaphore(MAX_REQUESTS)
        self._clock = clock
        self._sleep = sleep

    def decide(self, value: JsonInput, /, **ask: Unpack[Ask]) -> Answer:
        """Decides one input. Keywords as in `Ask`. Raises `DemurClientError`."""
        return self._run(_calls.decide(value, ask))

    def decide_batch(self, values: Sequence[JsonInput], /, **ask: Unpack[Ask]) -> list[Item]:
        """Decides several inputs in one request; item i is the outcome of input i.

        Raises `DemurClientError` where the request as a whole fails.
        """
        return self._run(_calls.decide_batch(values, ask))

    def decide_many(
        self, inputs: Iterable[JsonInput], /, *, batch_size: int = 32, concurrency: int = 4, **ask: Unpack[Ask]
    ) -> Iterator[Item]:
        """Decides any number of inputs, in batches of which at most `concurrency` are under way, and yields in order.

        `inputs` is read only as far as needed. A batch lost to the network, to overload or to its deadline after all
        retries gives its error to each of its items; an error that every batch would meet (a wrong key, an unknown
        task) is raised, and one of `inputs` itself after the items before it. Leaving the iteration early waits for the
        batches under way and starts no more.
        """
        return self._stream(batches(inputs, batch_size, concurrency), concurrency, ask)

    def _stream(self, ahead: Iterator[Batch], concurrency: int, ask: Ask) -> Iterator[Item]:
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="demur-client")
        pending: deque[Future[list[Item]]] = deque()
        try:
            while True:
                room = concurrency - len(pending)
                pending.extend(pool.submit(self._batch, batch, ask) for batch in itertools.islice(ahead, room))
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def tasks(self) -> list[TaskInfo]:
        """The registered tasks."""
        return self._run(_calls.tasks())

    def task(self, name: str) -> TaskInfo:
        """One registered task. Raises `NotFound`."""
        return self._run(_calls.task(name))

    def calibration(self, name: str) -> TaskCalibration:
        """What a task's verdicts rest on. Raises `NotFound`."""
        return self._run(_calls.calibration(name))

    def diagram(self, name: str) -> str:
        """A task's reliability diagram, as SVG. Raises `NotFound` where there is none."""
        return self._run(_calls.diagram(name))

    def policy(self, name: str) -> TaskPolicy:
        """The policy in force for a task. Raises `NotFound`."""
        return self._run(_calls.policy(name))

    def set_policy(self, name: str, *, version: int | None = None, **policy: Unpack[NewPolicy]) -> TaskPolicy:
        """Replaces a task's policy; needs an admin key. Asked once, without retries.

        Raises `Conflict` if `version` is given and another one is in force, `InvalidRequest`, `PermissionDenied`.
        """
        return self._run(_calls.set_policy(name, policy, version))

    def shadow_policy(self, name: str) -> ShadowPolicy:
        """The policy that is tried beside a task's own. Raises `NotFound` where there is none."""
        return self._run(_calls.shadow_policy(name))

    def set_shadow_policy(self, name: str, **policy: Unpack[NewPolicy]) -> ShadowPolicy:
        """Lets a policy judge beside a task's own, without effect; needs an admin key."""
        return self._run(_calls.set_shadow_policy(name, policy))

    def end_shadow_policy(self, name: str) -> None:
        """Ends that; needs an admin key."""
        return self._run(_calls.end_shadow_policy(name))

    def feedback(
        self,
        id: str,  # noqa: A002
        label: str,
        *,
        source: str | None = None,
        at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> LabelResult:
        """Gives the right option of a decision; on return the server keeps it. Needs a key that may label.

        Given twice it is `unchanged`; another label than before corrects. Raises `NotFound` for an unknown id,
        `InvalidRequest` for a label that is no option, `Conflict` if the idempotency key was used for other content.
        """
        return self._run(_loop_calls.feedback(Label(id=id, label=label, source=source, at=at), idempotency_key))

    def feedback_many(
        self,
        labels: Iterable[Label | tuple[str, str]],
        *,
        batch_size: int = 100,
        idempotency_key: str | None = None,
    ) -> list[LabelResult]:
        """Gives many labels, (id, label) or `Label`s, batch after batch; result i is what became of label i.

        A label that is refused is `rejected`, alone. An error ends it, and what was sent before is kept: asked again,
        those are `unchanged`, or with the same `idempotency_key` and labels answered as at first.
        """
        return [
            result
            for call in _loop_calls.feedback_batches(labels, batch_size, idempotency_key)
            for result in self._run(call)
        ]

    def decision(self, id: str) -> StoredDecision | ReviewItem:  # noqa: A002
        """A decision as the server keeps it, with its labels. Raises `NotFound`; others know it in a second.

        An audit that waits for a label of this key is a `ReviewItem`, blind as in the queue; a key of an administrator
        is shown all of it.
        """
        return self._run(_loop_calls.decision(id))

    def review(self, task: str | None = None, kind: Kind | None = None, *, page_size: int = 50) -> Iterator[ReviewItem]:
        """What is to be labelled: audits first, oldest first and blind, then reviews, then defers.

        Pages are asked for as they are needed. What others have claimed is left out.
        """
        after: str | None = None
        while True:
            page = self._run(_loop_calls.review(task, kind, after, page_size))
            yield from page.items
            after = page.following
            if after is None:
                return

    def claim(self, ids: Sequence[str], *, seconds: int = 600) -> list[Claim]:
        """Takes items for oneself, so that nobody else is asked to label them meanwhile."""
        return self._run(_loop_calls.claim(ids, seconds))

    def release(self, ids: Sequence[str]) -> list[Release]:
        """Gives claimed items back."""
        return self._run(_loop_calls.release(ids))

    def bundles(self, name: str) -> list[BundleVersion]:
        """The versions of a task's bundle, and which is in force. Raises `NotFound`."""
        return self._run(_loop_calls.bundles(name))

    def recertify(self, name: str, *, deadline: float | None = None) -> Renewal:
        """Attempts a new certificate for the task's calibrator, from its audits; needs an admin key. Asked once.

        Every attempt is counted and paid for. `deadline`: seconds; the client's `timeout` if not given.
        """
        return self._run(_loop_calls.renew(name, "recertify", deadline))

    def recalibrate(self, name: str, *, deadline: float | None = None) -> Renewal:
        """Attempts a new calibrator and certificate from the task's audits. As `recertify`."""
        return self._run(_loop_calls.renew(name, "recalibrate", deadline))

    def rollback(self, name: str, version: int) -> BundleVersion:
        """Serves an earlier version again, with the state of its certificate; needs an admin key. Asked once."""
        return self._run(_loop_calls.rollback(name, version))

    def models(self) -> list[ModelInfo]:
        """The model names that the server answers to."""
        return self._run(_calls.models())

    def version(self) -> Version:
        """The server's version."""
        return self._run(_calls.version())

    def ready(self) -> bool:
        """Whether the server takes decisions now. Asked once; a server that cannot be reached is not ready."""
        return self._probe("/readyz")

    def healthy(self) -> bool:
        """Whether the server process answers. Asked once; a server that cannot be reached is not healthy."""
        return self._probe("/healthz")

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({str(self._settings.base_url)!r})"

    def _probe(self, path: str) -> bool:
        try:
            return self._run(_calls.probe(path))
        except (ConnectionFailed, Timeout, Unavailable):
            return False

    def _batch(self, batch: Batch, ask: Ask) -> list[Item]:
        try:
            return batch.outcomes(self._run(batch.call(ask)))
        except DemurClientError as error:
            return batch.failures(error)

    def _run(self, call: Call[T]) -> T:
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
                self._sleep(step.seconds)
                continue
            try:
                reply = self._send(step)
            except httpx.RequestError as error:
                reply = error

    def _send(self, step: Send) -> httpx.Response:
        if not self._places.acquire(timeout=max(0.0, step.ends - self._clock())):
            raise httpx.PoolTimeout("no place for this request in time")
        try:
            with closing(self._http.send(step.build(), stream=True)) as response:
                stream = cast("httpx.SyncByteStream", response.stream)
                response.stream = _Bounded(stream, lambda: self._clock() >= step.ends)
                response.read()
            return response
        finally:
            self._places.release()
