"""What `demur serve` makes of flags, variables and `--demo`, before it starts anything."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from demur.server import cli, demo_model


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Runs `demur serve`, and gives the settings that it would have served with."""
    seen = []
    monkeypatch.setattr(cli, "run_server", lambda settings, **_: seen.append(settings) or 0)
    monkeypatch.setattr(demo_model, "export_demo_model", lambda target, **_: target)
    monkeypatch.chdir(tmp_path)
    for name in ("tasks", "bundles", "adapter"):
        Path("examples", name).mkdir(parents=True)

    def serve(*arguments, **environment):
        result = CliRunner().invoke(cli.main, ["serve", *arguments], env=environment)
        assert result.exit_code == 0, result.output
        return seen.pop()

    return serve


def test_the_demo_serves_its_model_with_the_example_tasks(served):
    settings = served("--demo")
    assert (settings.model, settings.model_name) == ("models/demo", demo_model.DEMO_MODEL_NAME)
    assert (settings.tasks, settings.bundles) == (Path("examples/tasks"), Path("examples/bundles"))


@pytest.mark.parametrize("how", ["flag", "variable", "file"])
def test_the_demo_takes_only_the_place_of_what_is_not_given(served, how):
    match how:
        case "flag":
            settings = served("--demo", "--tasks", "mine", "--model-name", "small")
        case "variable":
            settings = served("--demo", DEMUR_TASKS="mine", DEMUR_MODEL_NAME="small")
        case "file":
            Path("demur.yaml").write_text("tasks: mine\nmodel_name: small\n")
            settings = served("--demo", "--config", "demur.yaml")
    assert (settings.tasks, settings.bundles, settings.model_name) == (Path("mine"), None, "small")
    assert served("--demo", DEMUR_MODEL="other").model == "other"


def test_secrets_are_no_flags():
    """They would show in the process list."""
    said = CliRunner().invoke(cli.main, ["serve", "--help"]).output
    assert "--webhook-url" in said
    for secret in ("api-keys", "admin-keys", "feedback-keys", "webhook-secret", "store-url"):
        assert f"--{secret} " not in said


def test_a_database_that_is_away_is_worth_another_start(monkeypatch):
    """Not so a wrong setting, for which supervisors must not start the server over and over."""
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    for url, status, said in (
        ("postgresql://demur:secret@127.0.0.1:1/demur", 75, "start again when it can be reached"),
        ("mysql://127.0.0.1/demur", 2, "not supported"),
    ):
        result = CliRunner().invoke(cli.main, ["serve", "--model", "m", "--port", "0"], env={"DEMUR_STORE_URL": url})
        assert (result.exit_code, said in result.stderr) == (status, True), result.output
        assert "secret" not in result.stderr


COSTS = """name: route
question: Which team?
options: [billing, technical, sales]
policy: {kind: expected_cost, review_price: 1, defer_price: 2, cost: COST}
"""


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ("[[0, 1, 1], [1, 0, -3], [1, 1, 0]]", "route.yaml:4: `cost[1][2]` must be a number from 0"),
        ("[[0, 1, 1], [1, 0, .nan], [1, 1, 0]]", "route.yaml:4: `cost[1][2]` must be a number from 0"),
        ("[[0, 1], [1, 0]]", "route.yaml:4: `cost` has 2 rows of 2; 3 options need 3 rows of 3 numbers"),
    ],
)
def test_costs_that_cannot_be_end_every_command_with_2(monkeypatch, tmp_path, cost, said):
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    task, rows = tmp_path / "route.yaml", tmp_path / "rows.jsonl"
    task.write_text(COSTS.replace("COST", cost))
    rows.write_text('{"input": "x", "label": "sales"}')
    read = ["--task", str(task), "--data", str(rows), "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "out")]
    for command in (["serve", "--model", "m", "--tasks", str(task)], ["calibrate", *read], ["evaluate", *read]):
        result = CliRunner().invoke(cli.main, command)
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
