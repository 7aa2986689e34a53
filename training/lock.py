"""One process, or one group of them, in a run's folder at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demur.training import processes
from demur.training.errors import InUse

LOCK = ".lock"


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of `folder` while this lasts; makes it where missing.

    The first process of a run holds it for all. The lock is the kernel's: it ends with its process, however that ends.

    Args:
        folder: of a run.
        wait: until it is free, instead of raising InUse.
    """
    if not processes.is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InUse(f"another process is running in {folder}; wait for it, or give another --out") from None
        yield
