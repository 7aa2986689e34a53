"""A PostgreSQL of the session's own, without network, owned by an unprivileged user: it refuses to run as root."""

import os
import pwd
import shutil
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


@contextmanager
def cluster() -> Iterator[str]:
    """Gives the directory of its socket."""
    place = Path(tempfile.mkdtemp(prefix="demur-pg-"))
    user = None
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody").pw_name
        shutil.chown(place, user)
    place.chmod(0o755)
    data, as_user = str(place / "data"), {"user": user} if user else {}
    subprocess.run(
        [_binary("initdb"), "-D", data, "-U", "demur", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"],
        check=True, stdout=subprocess.DEVNULL, cwd=place, **as_user,
    )  # fmt: skip
    options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60", "-k", str(place)]
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [_binary("postgres"), "-D", data, *options], cwd=place, stdout=log, stderr=log, **as_user
        )
    try:
        wait_for(lambda: psql(place, "SELECT 1", check=False), 60, "PostgreSQL")
        yield str(place)
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(place, ignore_errors=True)


def psql(place: object, command: str, *, check: bool = True) -> bool:
    arguments = [_binary("psql"), "-h", str(place), "-U", "demur", "-d", "postgres", "-qAtc", command]
    return subprocess.run(arguments, check=check, capture_output=True).returncode == 0
