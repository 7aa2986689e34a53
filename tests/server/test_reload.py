"""SIGHUP's work: tasks and bundles are swapped together, or not at all."""

import shutil

import pytest

from demur.decision.errors import BundleError
from demur.decision.taskfile import load_task
from demur.server.serve import DemurServer
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
