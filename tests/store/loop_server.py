"""A server with a store and a decider without an engine, on a given port: what the test of `kill -9` kills."""

import asyncio
import sys

import uvicorn

from demur.decision.question import Option, Question
from demur.decision.task import AuditSpec, DecisionSpec, Task
from demur.server.app import create_app
from demur.server.lifecycle import Lifecycle
from demur.server.loop.loop import Loop
from demur.server.registry import Registry
from demur.server.serve import bind
from demur.server.services import ServedModel
from demur.server.settings import Settings
from tests.server.stub import StubDecider

COLOURS = Question("Which colour?", (Option("red"), Option("green"), Option("blue")))
TASK = Task("colours", DecisionSpec(COLOURS), audit=AuditSpec(0.5, 0.5, 0.5), show_audit=True, content_hash="c")


async def main(database: str, port: int) -> None:
    settings = Settings(store_url=database)
    loop = Loop.open(settings)
    assert loop is not None
    loop.start()
    lifecycle = Lifecycle()
    lifecycle.ready()
    model = ServedModel("stub-model", "A stub.", "2026-01-31")
    app = create_app(StubDecider(), Registry({TASK.name: TASK}), settings, lifecycle, model, loop=loop)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[bind("127.0.0.1", port)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
