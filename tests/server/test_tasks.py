import pytest
from click.testing import CliRunner

from demur.server.cli_tasks import tasks
from demur.server.wires.ops_models import StatusOut, TaskOut, TasksOut, VersionOut

from .conftest import TASKS


async def test_tasks_are_listed(plain):
    client, _ = plain
    listed = TasksOut.model_validate((await client.get("/tasks")).json())
    assert {task.name: task.content_hash for task in listed.tasks} == {
        name: task.content_hash for name, task in TASKS.items()
    }


def test_a_folder_without_task_files_is_no_good_check(tmp_path):
    (tmp_path / "tasks.yam").write_text("name: forgotten")
    result = CliRunner().invoke(tasks, ["check", str(tmp_path)])
    assert (result.exit_code, result.output) == (1, f"{tmp_path} has no task files (*.yaml, *.yml)\n")


async def test_one_task(plain):
    client, _ = plain
    task = TaskOut.model_validate((await client.get("/tasks/silent")).json())
    assert (task.options[0].name, task.options[0].description) == ("billing", "money")
    assert task.policy["trust_at"] == 0.9


@pytest.mark.parametrize("name", ["route-tickets", "silent/", "a/b", "%00", "é"])
async def test_an_unknown_task(plain, name):
    client, _ = plain
    reply = await client.get(f"/tasks/{name}")
    assert (reply.status_code, reply.json()["type"]) == (404, "urn:demur:problem:not_found")


async def test_a_reload_is_seen_at_once(rig):
    built = rig()
    async with built.client() as client:
        built.registry.current = {"only": TASKS["silent"]}
        assert (await client.get("/tasks/only")).status_code == 200
        assert (await client.post("/decide", json={"task": "route-ticket", "input": "x"})).status_code == 404


async def test_what_runs(plain):
    client, _ = plain
    assert VersionOut.model_validate((await client.get("/version")).json()).model == "stub-model"
    for path in ("/healthz", "/readyz"):
        StatusOut.model_validate((await client.get(path)).json())
