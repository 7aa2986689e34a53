"""What server processes share: imported once, in the process that they are forked from."""

from tests.server.bundled import StubEngine, pipeline_on
from tests.store import loop_server

pipeline_on(StubEngine())

__all__ = ["loop_server"]
