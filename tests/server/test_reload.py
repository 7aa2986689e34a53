"""SIGHUP's work: tasks and bundles are swapped together, or not at all. And what SIGTERM must not hide."""

import asyncio
import json
import shutil
from types import SimpleNamespace

import pytest

from demur.decision.errors import BundleError
from demur.decision.labelled import parse_labelled
from demur.decision.taskfile import load_task
from demur.server import serve
from demur.server.admission import Admission
from demur.server.calibrate import Plan
from demur.server.desk import CalibrationDesk
from demur.server.engines.vllm_engine import EngineNotStarted
from demur.server.errors import Conflict, EngineUnavailable
from demur.server.lifecycle import Lifecycle, Phase
from demur.server.loop.loop import Loop
from demur.server.loop.watch import Watch
from demur.server.metrics import Metrics
from demur.server.serve import EXIT_ENGINE, DemurServer, VllmEngine
from demur.server.settings import Settings

from .bundled import TASK_YAML, StubEngine, bundle_files, make_bundle, pipeline_on


@pytest.fixture
def server(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "route.yaml").write_bytes(TASK_YAML)
    make_bundle(tmp_path / "bundles" / "route", task=load_task(tmp_path / "tasks" / "route.yaml"))

    def build(**settings):
        built = DemurServer(Settings(tasks=tmp_path / "tasks", bundles=tmp_path / "bundles", **settings))
        built._decider.pipeline = pipeline_on(StubEngine())
        return built

    return build


def served(server):
    return {name: bundle.calibrated.bundle.id for name, bundle in server._registry.bundles.items()}


async def test_a_reload_takes_new_tasks_and_bundles(server, tmp_path):
    built = server()
    await built._reload_tasks()
    before = served(built)
    assert list(built._registry.current) == list(before) == ["route"]
    shutil.rmtree(tmp_path / "bundles" / "route")
    made = make_bundle(tmp_path / "bundles" / "new", bundle_files(), task=load_task(tmp_path / "tasks" / "route.yaml"))
    await built._reload_tasks()
    assert served(built) == {"route": made.id} != before


async def test_a_bundle_that_is_swapped_in_during_a_reload_stays(server, tmp_path, monkeypatch):
    built = server()
    await built._reload_tasks()
    pipeline, place = built._decider.pipeline, tmp_path / "bundles" / "route"
    desk = CalibrationDesk(lambda: pipeline, built._registry, tasks=tmp_path / "tasks", bundles=tmp_path / "bundles")
    read, made = pipeline.engine.read, []

    async def swapping(*asked):
        if not made:
            shutil.rmtree(place)
            made.append(make_bundle(place, bundle_files(), task=built._registry.current["route"]))
            desk._swap(built._registry.current["route"], made[0])
        return await read(*asked)

    monkeypatch.setattr(pipeline.engine, "read", swapping)
    await built._reload_tasks()
    assert served(built) == {"route": made[0].id}
    assert pipeline._bundles["route"].calibrated.bundle.id == made[0].id


@pytest.mark.parametrize("how", ["changed", "gone"])
async def test_no_bundle_is_made_with_a_task_file_that_is_not_what_is_served(server, tmp_path, how):
    built = server()
    await built._reload_tasks()
    pipeline, file = built._decider.pipeline, tmp_path / "tasks" / "route.yaml"
    task = built._registry.current["route"]
    desk = CalibrationDesk(lambda: pipeline, built._registry, tasks=tmp_path / "tasks", bundles=tmp_path / "bundles")
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(TASK_YAML.replace(b"Which team?", b"Which group?"))
    names = task.spec.question.names
    lines = "\n".join(json.dumps({"input": f"row {n}", "label": names[n % 2]}) for n in range(60))
    before = served(built)
    with pytest.raises(Conflict, match="send SIGHUP"):
        await desk.calibrate(task, parse_labelled(lines.encode(), "rows", task.spec.question), Plan())
    assert served(built) == before


@pytest.mark.parametrize("broken", ["task", "bundle", "half"])
async def test_a_reload_is_all_or_nothing(server, tmp_path, caplog, broken):
    built = server()
    await built._reload_tasks()
    tasks, before = built._registry.current, served(built)
    (tmp_path / "tasks" / "more.yaml").write_text("name: more\nquestion: Is it?\noptions: [yes, no]\n")
    match broken:
        case "task":
            (tmp_path / "tasks" / "more.yaml").write_text("name: more\n")
        case "bundle":
            (tmp_path / "bundles" / "route" / "calibrator.json").write_text("{}")
        case "half":
            (tmp_path / "bundles" / "half").mkdir()
            (tmp_path / "bundles" / "half" / "task.yaml").write_bytes(TASK_YAML)
    await built._reload_tasks()
    assert "the old ones stay" in caplog.text
    assert {"task": "more.yaml", "bundle": "calibrator.json", "half": "half is no bundle"}[broken] in caplog.text
    assert built._registry.current is tasks
    assert served(built) == before


async def test_a_task_that_changed_defers_or_is_not_taken(server, tmp_path, caplog):
    changed = TASK_YAML.replace(b"Which team?", b"Which group?")
    strict, lenient = server(strict_bundles=True), server()
    await strict._reload_tasks()
    (tmp_path / "tasks" / "route.yaml").write_bytes(changed)
    await strict._reload_tasks()
    assert strict._registry.bundles["route"].mismatches == ()
    assert "made for another question, prompt" in caplog.text
    await lenient._reload_tasks()
    assert lenient._registry.bundles["route"].mismatches == ("question", "prompt")


async def test_a_bundle_that_is_refused_does_not_become_a_version(server, tmp_path, caplog):
    """Else it would be served all the same, a moment later and after every restart."""
    built = server(strict_bundles=True, state_dir=tmp_path / "state")
    built._loop = Loop.open(built.settings)
    built._loop.start()
    metrics = Metrics(engine=())
    built._watch = Watch.over(built._loop, built._registry, metrics, built.settings, lambda: built._decider.pipeline)
    try:
        await built._reload_tasks()
        (good,) = served(built).values()
        shutil.rmtree(tmp_path / "bundles" / "route")
        (tmp_path / "other.yaml").write_bytes(TASK_YAML.replace(b"Which team?", b"Which group?"))
        make_bundle(tmp_path / "bundles" / "route", task=load_task(tmp_path / "other.yaml"))
        await built._reload_tasks()
        assert "the old ones stay" in caplog.text
        await built._watch.tend()
        assert served(built) == {"route": good}
        assert [version.bundle for version in await built._watch.shelf.versions("route")] == [good]
    finally:
        await built._watch.aclose()
        await built._loop.aclose()


async def test_a_broken_bundle_stops_the_start(server, tmp_path):
    (tmp_path / "bundles" / "route" / "certificate.json").unlink()
    with pytest.raises(BundleError, match=r"certificate\.json is missing"):
        await server().run()


async def test_labels_that_cannot_be_read_are_named_with_file_and_line(server, tmp_path, caplog):
    built = server()
    await built._reload_tasks()
    before = built._registry.current
    file = tmp_path / "tasks" / "more.yaml"
    long = " ".join(["very"] * 80)
    file.write_text(f"name: more\nquestion: Is it?\nreadout: text\noptions:\n  - little\n  - {long}\n")
    await built._reload_tasks()
    assert built._registry.current is before
    assert f"{file}:6: task more: option 2" in caplog.text
    assert "use the letter readout" in caplog.text


@pytest.mark.parametrize("how", ["not started", "dead", "hung"])
async def test_an_engine_that_fails_while_the_server_starts_is_worth_another_start(server, monkeypatch, how):
    async def read(*_):
        if how == "dead":
            raise EngineUnavailable("the engine failed")
        await asyncio.Event().wait()

    async def failed():
        if how == "dead":
            await asyncio.Event().wait()
        return "no output for 60 s"

    async def start(_):
        if how == "not started":
            raise EngineNotStarted("vLLM did not start")
        engine = StubEngine()
        engine.read, engine.failed = read, failed
        return engine

    monkeypatch.setattr(VllmEngine, "start", start)
    monkeypatch.setattr(serve, "_LAST_ANSWERS_S", 0)
    told = []
    built = server(model="stub")
    built._on_failure = lambda: told.append(True)
    built._lifecycle, built._http = Lifecycle(), SimpleNamespace(config=SimpleNamespace())
    tasks = {"route": load_task(built.settings.tasks / "route.yaml")}
    async with asyncio.timeout(20):
        await built._start(tasks, {}, "http://127.0.0.1:1")
    assert (built._status, built._lifecycle.phase, told) == (EXIT_ENGINE, Phase.FAILED, [True])
    assert built._stopping.is_set()


async def test_a_signal_after_the_engine_failed_does_not_make_it_a_success(server, monkeypatch):
    """Whatever supervises the server may stop it as soon as /readyz says 503, and still learns why it ended."""

    async def start(_):
        engine = StubEngine()
        engine.label_limit = 128
        engine.failed = lambda: asyncio.sleep(0, "the engine died")
        return engine

    monkeypatch.setattr(VllmEngine, "start", start)
    built = server(model="stub")
    built._lifecycle = Lifecycle()
    built._admission = Admission(built._lifecycle, 1, 1)
    built._http = SimpleNamespace(config=SimpleNamespace())
    failed = asyncio.Event()
    built._lifecycle.on_fail(lambda _: failed.set())
    starting = asyncio.create_task(built._start({}, {}, "http://127.0.0.1:1"))
    await asyncio.wait_for(failed.wait(), 20)
    await built._drain()
    assert built._stopping.is_set()
    assert built._status == EXIT_ENGINE
    starting.cancel()
