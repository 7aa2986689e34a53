"""The engine that the whole session shares, and servers on it, in a thread with an event loop of its own.

Tests that block (a subprocess, the blocking client) would otherwise stop the loop that has to answer them.
"""

import asyncio
import socket
import threading
import warnings
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from demur.decision.taskfile import load_tasks
from demur.server.app import Application, create_app
from demur.server.bundles import read_bundles
from demur.server.decide import DecidePipeline
from demur.server.desk import CalibrationDesk
from demur.server.engines.vllm_engine import VllmEngine
from demur.server.engines.vllm_setup import VllmSettings
from demur.server.lifecycle import Lifecycle
from demur.server.loop.loop import Loop
from demur.server.registry import Registry
from demur.server.serve import bind
from demur.server.services import ServedModel
from demur.server.settings import Settings

T = TypeVar("T")


@dataclass
class LiveServer:
    url: str
    app: Application
    http: uvicorn.Server
    serving: asyncio.Task[None]


class _Http(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


class Live:
    """An engine in a thread. `run` awaits a coroutine there and returns its result."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="live", daemon=True)
        self._thread.start()
        self.engine: VllmEngine

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 300) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def start(self, settings: VllmSettings) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's own
            self.engine = self.run(VllmEngine.start(settings))
        self.pipeline = DecidePipeline(self.engine, max_input_tokens=4096)

    def serve(self, settings: Settings, tasks: str = "examples/tasks") -> LiveServer:
        return self.run(self._serve(settings, tasks))

    async def _serve(self, settings: Settings, directory: str) -> LiveServer:
        tasks = load_tasks(Path(directory))
        pipeline = DecidePipeline(self.engine, max_input_tokens=settings.max_input_tokens)
        prepared = pipeline.prepare(tasks.values(), read_bundles(settings.bundles))
        await pipeline.warm(prepared)
        pipeline.adopt(prepared)
        lifecycle = Lifecycle()
        lifecycle.ready()
        model = ServedModel(self.engine.identity.name, "The demo model.", "2026-01-01")
        registry = Registry(tasks, prepared.bundles)
        desk = CalibrationDesk(lambda: pipeline, registry, tasks=Path(directory), bundles=settings.bundles)
        loop = Loop.open(settings)
        if loop is not None:
            loop.start()
        app = create_app(pipeline, registry, settings, lifecycle, model, desk=desk, loop=loop)
        listener = bind("127.0.0.1", 0)
        http = _Http(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        await http.up.wait()
        return LiveServer(f"http://127.0.0.1:{listener.getsockname()[1]}", app, http, serving)

    def stop(self, server: LiveServer) -> None:
        async def stop() -> None:
            server.http.should_exit = True
            await server.serving
            if (loop := server.app.services.loop) is not None:
                await loop.aclose()

        self.run(stop())

    def close(self) -> None:
        if hasattr(self, "engine"):
            self.run(self.engine.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
