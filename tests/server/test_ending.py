"""How a server ends: what it holds is closed in order, whatever failed before."""

import asyncio

from demur.server import serve
from demur.server.engines import watch
from demur.server.settings import Settings
from demur.server.store.database import store_url
from demur.server.store.store import Store
from tests.store.making import record


async def test_a_part_that_cannot_be_closed_keeps_no_other_from_it(tmp_path, monkeypatch, caplog):
    async def never(_settings):
        await asyncio.Event().wait()

    async def failing():
        raise RuntimeError("of old")

    monkeypatch.setattr(serve.VllmEngine, "start", never)
    for ends in ("kill", "end_resource_tracker"):  # which are the tests' own
        monkeypatch.setattr(watch, ends, lambda *_: None)
    server = serve.DemurServer(Settings(model="none", state_dir=tmp_path, port=0))
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(20):
        while server._watch is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    server._watch.aclose = failing
    server._loop.log.put("dec_last", lambda: record("dec_last"))
    server._stop(0)
    assert await running == 0
    assert "RuntimeError: of old" in caplog.text
    store = Store.open(store_url(None, tmp_path))
    kept = store.read_now(lambda connection: connection.exec_driver_sql("SELECT id FROM decisions").scalars().all())
    store.close()
    assert kept == ["dec_last"]
