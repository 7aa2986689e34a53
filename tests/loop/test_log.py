"""The decision log, as far as no server is needed."""

from demur.server.loop.log import DecisionLog
from demur.server.store.errors import StoreUnavailable

from .conftest import decision


class Down:
    """A store that takes nothing."""

    async def write(self, _):
        raise StoreUnavailable("down")


async def test_what_is_lost_at_the_end_is_said(caplog):
    log = DecisionLog(Down(), capacity=10)
    log.start()
    for number in range(3):
        log.put(f"dec_{number}", lambda number=number: decision(number))
    await log.aclose(timeout_s=0)
    (said,) = [record for record in caplog.records if "lost" in record.message]
    assert said.fields == {"decisions": 3}
    assert log.lost == {"closed": 3}
