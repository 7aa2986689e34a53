import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demur.server.demo_model import DEMO_MODEL_NAME, export_demo_model
from demur.server.settings import Settings
from tests.postgres import Cluster, cluster, psql

if TYPE_CHECKING:
    from tests.live import Live, LiveServer


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the shared engine is marked: `make test` runs those tests in one process, the others beside it."""
    for item in items:
        if "live" in getattr(item, "fixturenames", ()):
            item.add_marker("engine")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Directory of the demo model, where `make setup` puts it."""
    return export_demo_model(Path("models/demo"), renew=True)


@pytest.fixture(scope="session")
def live(demo_model: Path) -> Iterator["Live"]:
    """The engine that the session shares: real vLLM with the demo model."""
    from demur.server.engines.vllm_setup import VllmSettings
    from tests.live import Live

    live = Live()
    try:
        live.start(VllmSettings(model=str(demo_model), name=DEMO_MODEL_NAME, kv_cache_gib=2))
        yield live
    finally:
        live.close()


@pytest.fixture(scope="session")
def demo_server(live: "Live", tmp_path_factory: pytest.TempPathFactory) -> Iterator["LiveServer"]:
    """A server with the example tasks and a store on the shared engine, without keys."""
    server = live.serve(Settings(queue_size=512, state_dir=tmp_path_factory.mktemp("state")))
    yield server
    live.stop(server)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Cluster]:
    """A real PostgreSQL; whoever stops it starts it again."""
    with cluster() as one:
        yield one


@pytest.fixture(scope="session")
def postgres(postgres_server: Cluster) -> str:
    """Directory of the socket of a real PostgreSQL."""
    return str(postgres_server.place)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of both kinds in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'demur.db'}"
    place = request.getfixturevalue("postgres")
    name = f"demur_{uuid.uuid4().hex}"
    psql(place, f"CREATE DATABASE {name}")
    return f"postgresql://demur@/{name}?host={place}"
