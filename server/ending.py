"""How a server whose engine failed ends: in order where that works, by force where anything hangs."""

import faulthandler
import logging
import os
import threading
import time
from typing import NoReturn

import psutil

from demur.server.engines import watch

#: Seconds for an end in order. What the store has is safe at any moment.
LAST_S = 7.0


def end_after(seconds: float, status: int) -> None:
    """Ends this process and its children after so long, unless it has ended before.

    A thread does it, since what hangs may be the event loop. It prints where every thread stood.
    """

    def end() -> None:
        time.sleep(seconds)
        faulthandler.dump_traceback()
        watch.kill(psutil.Process().children(recursive=True), seconds=0.5)
        os._exit(status)

    threading.Thread(target=end, name="demur-end", daemon=True).start()


def end_now(status: int) -> NoReturn:
    """Ends this process without Python's clean-up, which joins threads and closes sockets that wait for a dead peer."""
    logging.shutdown()
    os._exit(status)
