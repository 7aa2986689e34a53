"""Server processes with a store, a bundle and a watched certificate, on the stub engine: what faults are tried on.

The stub engine answers every input alike, and its certificate trusts that.
"""

import asyncio
import multiprocessing
import os
from pathlib import Path
from typing import Any

import uvicorn

from demur.decision.task import AuditSpec
from demur.server.serve import bind
from tests.loop.servers import AUDITED, start
from tests.process.server import free_port


class LoopServer:
    """One such process: started, killed and started again on one port. `place` holds its bundle."""

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["tests.store.warm"])

    def __init__(self, database: str, place: Path, *, audits: float = 0.5, **settings: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = (database, place, self.port, audits, settings)

    def start(self) -> "LoopServer":
        self.process = self._context.Process(target=_serve, args=self._arguments, daemon=True)
        self.process.start()
        return self

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)


def _serve(database: str, place: Path, port: int, audits: float, settings: dict[str, Any]) -> None:
    asyncio.run(_main(database, place, port, audits, settings))


async def _main(database: str, place: Path, port: int, audits: float, settings: dict[str, Any]) -> None:
    from dataclasses import replace

    task = replace(AUDITED, audit=AuditSpec(audits, audits, audits), show_audit=True)
    process = await start(place, task=task, store_url=database, **settings)
    process.watch.start()
    config = uvicorn.Config(process.app, log_config=None, access_log=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[bind("127.0.0.1", port)])
    os._exit(0)
