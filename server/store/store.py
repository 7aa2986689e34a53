"""The store, opened: one writer, a few readers, and the secret that draws and hashes are keyed with."""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from demur.server.store import schema
from demur.server.store.database import connect
from demur.server.store.errors import StoreError, StoreUnavailable, StoreUnreachable
from demur.server.store.migrate import migrate
from demur.server.store.rows import OptionSets
from demur.server.store.writer import Writer, unavailable

T = TypeVar("T")

_READERS = 4


class Store:
    """Opened by `open`, closed by `close`. Jobs get a connection within a transaction and must do nothing else.

    `timeout_s` bounds every wait for the database.
    """

    def __init__(self, writing: Engine, reading: Engine, secret: bytes, timeout_s: float) -> None:
        self._writing = writing
        self._reading = reading
        self._secret = secret
        self._timeout_s = timeout_s
        self._closed = False
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="demur-store-read")
        self.writer = Writer(writing, timeout_s=timeout_s)
        self.options = OptionSets()

    @classmethod
    def open(cls, url: URL, *, timeout_s: float = 2.0) -> Self:
        """Connects, and migrates where that is needed.

        Raises StoreError, which never quotes a password; StoreUnreachable where PostgreSQL may be there later.
        """
        sqlite = url.get_backend_name() == "sqlite"
        engines: list[Engine] = []
        try:
            writing = connect(url, timeout_s=timeout_s, pool_size=1 if sqlite else _READERS + 1, writes=True)
            engines.append(writing)
            reading = connect(url, timeout_s=timeout_s, pool_size=_READERS, writes=False) if sqlite else writing
            engines.append(reading)
            migrate(writing)
            with reading.connect() as connection:
                secret = connection.scalar(select(schema.secrets.c.value).where(schema.secrets.c.name == "draws"))
            if secret is None:
                raise StoreError("the store has lost its secret; restore it from a backup")
        except BaseException as error:
            for engine in engines:
                engine.dispose()
            if not isinstance(error, SQLAlchemyError | OSError):
                raise
            reason = getattr(error, "orig", None) or error
            shown = url.render_as_string(hide_password=True)
            later = not sqlite and isinstance(error, OperationalError)
            kind = StoreUnreachable if later else StoreError
            raise kind(f"cannot open the store {shown}: {str(reason).strip() or type(reason).__name__}") from None
        return cls(writing, reading, secret, timeout_s)

    @property
    def up(self) -> bool:
        """Whether the last write succeeded, and none takes too long."""
        return self.writer.up

    def u(self, decision_id: str, kind: str = "draw") -> float:
        """A number in [0, 1) that only this store can tell from an id, another for each kind of draw."""
        return (int.from_bytes(self._keyed(kind, decision_id, 8), "big") >> 11) / 2**53

    def hash(self, kind: str, text: str) -> str:
        """A keyed hash, hex: the same for the same text, and telling nothing of it without the secret."""
        return self._keyed(kind, text, 20).hex()

    def _keyed(self, kind: str, text: str, size: int) -> bytes:
        # BLAKE2 has a key of its own, and costs a fraction of OpenSSL's HMAC where caches are cold.
        return hashlib.blake2b(f"{kind}\0{text}".encode(), digest_size=size, key=self._secret).digest()

    async def write(self, job: Callable[[Connection], T], *, timeout_s: float | None = None) -> T:
        """Runs a job in the writer's next transaction; durable when this returns. Raises StoreUnavailable.

        After a timeout the job is not run, unless it was running: then it may have been.
        """
        future: asyncio.Future[T] = asyncio.wrap_future(self.writer.submit(job))
        # Not wait_for: before Python 3.12 that loses a cancellation which comes together with the result.
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await future
        except TimeoutError:
            raise StoreUnavailable("the store took too long") from None

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Runs a job that only reads, in a snapshot of its own. Raises StoreUnavailable."""
        future = asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, job)
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                return await future
        except TimeoutError:
            raise StoreUnavailable("the store took too long") from None

    def read_now(self, job: Callable[[Connection], T]) -> T:
        """As `read`, on this thread."""
        return self._on(self._reading, job)

    def write_now(self, job: Callable[[Connection], T]) -> T:
        """As `write`, on this thread and in a transaction of its own."""
        future = self.writer.submit(job)
        return future.result()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the threads and the connections; what waits to be written is."""
        self._closed = True
        self.writer.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writing.dispose()
        self._reading.dispose()

    def _on(self, engine: Engine, job: Callable[[Connection], T]) -> T:
        try:
            with engine.connect() as connection:
                if connection.dialect.name == "postgresql":
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                try:
                    return job(connection)
                finally:
                    if self._closed:
                        connection.detach()  # its pool is gone, and would neither use it again nor close it
        except Exception as error:
            if unavailable(error):
                raise StoreUnavailable("the store does not answer") from error
            raise
