"""A PostgreSQL of the session's own, without network, owned by an unprivileged user: it refuses to run as root."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.process.server import wait_for


def _binary(name: str) -> str:
    """The newest of Debian's, which are not on the path, else the path's."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name) or name


class Cluster:
    """A PostgreSQL that can be stopped and started again; `place` is the directory of its socket."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="demur-pg-"))
        self._user: dict[str, str] = {}
        if os.geteuid() == 0:
            self._user = {"user": pwd.getpwnam("nobody").pw_name}
            shutil.chown(self.place, self._user["user"])
        self.place.chmod(0o755)
        self._data = str(self.place / "data")
        subprocess.run(
            [_binary("initdb"), "-D", self._data, "-U", "demur", "--auth=trust", "--no-sync", "--encoding=UTF8",
             "--locale=C"],
            check=True, stdout=subprocess.DEVNULL, cwd=self.place, **self._user,
        )  # fmt: skip

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60", "-k", str(self.place)]
        with (self.place / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [_binary("postgres"), "-D", self._data, *options], cwd=self.place, stdout=log, stderr=log, **self._user
            )
        wait_for(lambda: psql(self.place, "SELECT 1", check=False), 60, "PostgreSQL")

    def stop(self) -> None:
        """As `pg_ctl stop -m fast` does: connections are broken off."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(30)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that runs, and goes away."""
    one = Cluster()
    try:
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(one.place, ignore_errors=True)


def psql(place: object, command: str, *, check: bool = True) -> bool:
    arguments = [_binary("psql"), "-h", str(place), "-U", "demur", "-d", "postgres", "-qAtc", command]
    return subprocess.run(arguments, check=check, capture_output=True).returncode == 0
