"""The server process: socket, engine, signals, and how it all ends.

Exit statuses: 0 after a drain, 1 when the model or the tasks cannot be served, 70 when the engine did not start, died
or hung, 75 when the store's database cannot be reached.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from demur.decision.errors import DecisionError, LabelError
from demur.decision.task import Task
from demur.server.app import create_app
from demur.server.bundles import check_bundles, read_bundles
from demur.server.calibrated import Calibrated
from demur.server.closing import closed, finished
from demur.server.decide import DecidePipeline, Prepared
from demur.server.desk import CalibrationDesk
from demur.server.engines import watch
from demur.server.engines.identity import ModelUnusable
from demur.server.engines.vllm_engine import EngineNotStarted, VllmEngine
from demur.server.engines.vllm_setup import VllmSettings
from demur.server.errors import DemurError, EngineUnavailable, Unavailable
from demur.server.lifecycle import Lifecycle, Phase
from demur.server.loop.loop import Loop
from demur.server.loop.watch import Watch
from demur.server.metrics import Metrics
from demur.server.registry import Registry
from demur.server.services import ServedModel
from demur.server.settings import Settings
from demur.server.tasks import located, read_tasks
from demur.server.types import DecideRequest, Decision

EXIT_UNUSABLE = 1
EXIT_ENGINE = 70
EXIT_STORE = 75
#: After an engine failure: so long the 503s reach their callers, and probes see that the server is not ready.
_LAST_ANSWERS_S = 2.0

_log = logging.getLogger("demur.serve")


class _LateDecider:
    """Stands in for the pipeline until the engine runs."""

    def __init__(self) -> None:
        self.pipeline: DecidePipeline | None = None

    async def decide(self, request: DecideRequest) -> Decision:
        """See `Decider.decide`."""
        if self.pipeline is None:
            raise Unavailable("the engine is starting; try again later", retry_after=5)
        return await self.pipeline.decide(request)


class _Uvicorn(uvicorn.Server):
    """Uvicorn that leaves signals to us: it would stop listening at the first one, and new work is to get a 503."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class DemurServer:
    """One server process. `await run()` returns the exit status; `on_failure` is told of a dead engine before that."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_ready: Callable[[str, Mapping[str, Task]], None] | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._decider = _LateDecider()
        self._registry = Registry({})
        self._engine: VllmEngine | None = None
        self._watch: Watch | None = None
        self._shadows: Mapping[str, Calibrated] = {}
        self._started = datetime.now(UTC)
        self._status = 0
        self._signals = 0
        self._stopping = asyncio.Event()
        self._reload = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serves until a signal or a failure.

        Raises `DecisionError` for wrong task files and bundles, `SettingsError`, `StoreUnreachable`, `OSError`.
        """
        tasks = read_tasks(self.settings.tasks)
        place = self.settings.bundle_place
        if place is not None and self.settings.bundles is None:
            place.mkdir(parents=True, exist_ok=True)
        bundles = read_bundles(place)
        self._shadows = read_bundles(self.settings.shadow_bundles)
        listener = bind(self.settings.host, self.settings.port)
        name = self.settings.model_name or Path(self.settings.model or "").name
        self._lifecycle = Lifecycle(self.settings.retry_after_s)
        model = ServedModel(
            name=name,
            description="Served by Demur on vLLM.",
            release_date=self._started.date().isoformat(),
            created=int(self._started.timestamp()),
            aliases=self.settings.model_aliases,
        )
        desk = CalibrationDesk(lambda: self._decider.pipeline, self._registry, tasks=self.settings.tasks, bundles=place)
        try:
            self._loop = await asyncio.to_thread(Loop.open, self.settings)
        except BaseException:
            listener.close()
            raise
        metrics = Metrics()
        if self._loop is not None:
            self._loop.start()
            self._watch = Watch.over(self._loop, self._registry, metrics, self.settings, lambda: self._decider.pipeline)
            desk.shelf = self._watch.shelf
        app = create_app(
            self._decider,
            self._registry,
            self.settings,
            self._lifecycle,
            model,
            metrics=metrics,
            desk=desk,
            loop=self._loop,
            watch=self._watch,
        )
        self._admission = app.services.admission
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        self._http = _Uvicorn(config)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._signalled)
        loop.add_signal_handler(signal.SIGINT, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._spawn_reload)
        serving = asyncio.create_task(self._http.serve(sockets=[listener]))
        address = listener.getsockname()
        url = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"
        starting = asyncio.create_task(self._start(tasks, bundles, url))
        try:
            await self._stopping.wait()
        finally:
            starting.cancel()
            self._http.should_exit = True
            await finished(starting, serving)
            parts = (self._watch, self._loop, self._engine)
            await closed(*(part.aclose for part in parts if part is not None))
            await asyncio.to_thread(watch.kill, watch.children())
            await asyncio.to_thread(watch.end_resource_tracker)
        return self._status

    async def _start(self, tasks: Mapping[str, Task], bundles: Mapping[str, Calibrated], url: str) -> None:
        _log.info("starting the engine", extra={"fields": {"model": self.settings.model, "url": url}})
        try:
            engine = self._engine = await VllmEngine.start(vllm_settings(self.settings))
            pipeline = DecidePipeline(engine, max_input_tokens=self.settings.max_input_tokens)
            if self._watch is not None:
                pipeline.standing = self._watch.standing
            prepared = await self._fitting(pipeline, tasks, bundles)
            await watch.unless(engine.failed(), pipeline.warm(prepared))
            pipeline.adopt(prepared)
            pipeline.serve_shadows(tasks.values(), self._shadows)
            self._registry.current, self._registry.bundles = tasks, prepared.bundles
            if self._watch is not None:
                await self._watch.begin(prepared.bundles)
                self._watch.start()
        except (EngineNotStarted, EngineUnavailable) as error:
            await self._engine_failed(str(error))
            return
        except (ModelUnusable, DecisionError, DemurError) as error:
            _log.error("cannot serve: %s", error)
            self._lifecycle.fail(str(error))
            self._stop(EXIT_UNUSABLE)
            return
        except Exception:
            _log.exception("cannot serve")
            self._lifecycle.fail("the server did not start")
            self._stop(EXIT_UNUSABLE)
            return
        self._decider.pipeline = pipeline
        self._lifecycle.ready()
        fields = {
            "url": url,
            "model": engine.identity.name,
            "tasks": sorted(tasks),
            "bundles": sorted(prepared.bundles),
            "wide_reads": engine.label_limit > 128,
        }
        _log.info("ready", extra={"fields": fields})
        if self._on_ready is not None:
            self._on_ready(url, tasks)
        reason = await engine.failed()
        if self._signals and not self._admission.in_flight:
            # Ctrl-C reaches vLLM's processes too, and they end at once; nobody is waiting for them.
            self._stop(0)
            return
        await self._engine_failed(reason)

    async def _engine_failed(self, reason: str) -> None:
        """Tells those who wait, and ends the server."""
        _log.error("the engine failed: %s", reason)
        self._status = EXIT_ENGINE  # also if a signal ends the wait below
        self._on_failure()
        self._lifecycle.fail(reason)
        self._http.config.timeout_graceful_shutdown = 1  # nothing that is left can be answered
        await asyncio.sleep(_LAST_ANSWERS_S)
        self._stop(self._status)

    async def _fitting(
        self, pipeline: DecidePipeline, tasks: Mapping[str, Task], found: Mapping[str, Calibrated]
    ) -> Prepared:
        """The tasks with what they are to be served with; bundles become versions only once all were found to fit."""
        bundles = found if self._watch is None else await self._watch.shelf.settled(tasks, found)
        try:
            prepared = await asyncio.to_thread(pipeline.prepare, tasks.values(), bundles)
        except LabelError as error:
            raise located(self.settings.tasks, error) from None
        check_bundles(bundles, prepared.bundles, strict=self.settings.strict_bundles)
        if self._watch is not None:
            await self._watch.shelf.keep(found)
        return prepared

    def _stop(self, status: int) -> None:
        self._status = self._status or status
        self._stopping.set()

    def _signalled(self) -> None:
        self._signals += 1
        starting = self._lifecycle.phase is Phase.STARTING
        if starting or self._signals > 1:
            # A starting engine cannot be interrupted, and nothing is in flight yet.
            _log.warning("stopping at once", extra={"fields": {"signals": self._signals}})
            watch.kill(watch.children())
            os._exit(0 if starting else 130)
        self._spawn(self._drain())

    async def _drain(self) -> None:
        fields = {"in_flight": self._admission.in_flight, "requests": self._admission.requests}
        _log.info("draining", extra={"fields": {**fields, "seconds": self.settings.drain_s}})
        self._lifecycle.drain()
        try:
            await asyncio.wait_for(self._admission.idle(), self.settings.drain_s)
        except TimeoutError:
            fields = {"in_flight": self._admission.in_flight, "requests": self._admission.requests}
            _log.warning("gave up on work in flight", extra={"fields": fields})
        self._stop(0)

    def _spawn_reload(self) -> None:
        self._spawn(self._reload_tasks())

    async def _reload_tasks(self) -> None:
        """All or nothing: whatever is wrong with one task or bundle, those that were in use stay."""
        pipeline = self._decider.pipeline
        if pipeline is None:
            _log.warning("not reloaded: the server is still starting")
            return
        async with self._reload:
            try:
                before = None
                while before is not self._registry.bundles:  # one that was swapped in meanwhile is not to be undone
                    before = self._registry.bundles
                    tasks = await asyncio.to_thread(read_tasks, self.settings.tasks)
                    bundles = await asyncio.to_thread(read_bundles, self.settings.bundle_place)
                    shadows = await asyncio.to_thread(read_bundles, self.settings.shadow_bundles)
                    prepared = await self._fitting(pipeline, tasks, bundles)
                    await pipeline.warm(prepared)
            except (DecisionError, DemurError, OSError) as error:
                _log.error("tasks not reloaded, nor bundles; the old ones stay: %s", error)
                return
            except Exception:
                _log.exception("tasks not reloaded, nor bundles; the old ones stay")
                return
            pipeline.adopt(prepared)
            self._registry.current, self._registry.bundles = tasks, prepared.bundles
            pipeline.serve_shadows(tasks.values(), shadows)
            if self._watch is not None:
                await self._watch.begin(prepared.bundles)
        fields = {"tasks": sorted(tasks), "bundles": sorted(prepared.bundles)}
        _log.info("tasks reloaded", extra={"fields": fields})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `OSError` with the address in its message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def vllm_settings(settings: Settings) -> VllmSettings:
    """The engine's part of the settings."""
    if settings.model is None:
        raise ModelUnusable("no model: give --model DIR, or --demo")
    return VllmSettings(
        model=settings.model,
        adapter=settings.adapter,
        name=settings.model_name,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        block_size=settings.block_size,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        compile=settings.compile,
        threads=settings.threads,
        hang_timeout=settings.hang_timeout_s,
    )
