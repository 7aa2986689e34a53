"""The `demur` command."""

import asyncio
import json
import logging.config
import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import click

from demur.decision.task import Task
from demur.server.cli_bundle import bundle
from demur.server.cli_calibrate import calibrate
from demur.server.cli_decide import decide
from demur.server.cli_evaluate import evaluate
from demur.server.cli_options import flag_values, settings_options
from demur.server.cli_store import audits, store
from demur.server.cli_tasks import tasks
from demur.server.settings import Settings, SettingsError, load_settings

DEMO_MODEL = Path("models/demo")
DEMO_STATE = Path("out/demo-state")


class Commands(click.Group):
    """The commands, and those of other packages (`demur train`), which are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *entry_points(group="demur.commands").names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None without one."""
        if found := super().get_command(ctx, cmd_name):
            return found
        for entry in entry_points(group="demur.commands", name=cmd_name):
            command: click.Command = entry.load()
            return command
        return None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Demur: a decision server that knows when to demur."""


main.add_command(audits)
main.add_command(bundle)
main.add_command(calibrate)
main.add_command(decide)
main.add_command(evaluate)
main.add_command(store)
main.add_command(tasks)


@main.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    click.echo(installed("demur"))


@main.command("export-demo-model")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--plain", is_flag=True, help="SmolLM2-135M-Instruct as it is, without the adapter.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def export_demo_model(directory: Path, plain: bool, force: bool) -> None:
    """Write the demo model to DIRECTORY, unless it is there: SmolLM2-135M-Instruct with our adapter, 540 MB."""
    from demur.server.demo_model import DemoModelMissing
    from demur.server.demo_model import export_demo_model as export

    try:
        click.echo(export(directory, plain=plain, force=force))
    except (DemoModelMissing, OSError) as error:
        fail(str(error))


@main.command()
@click.option("--demo", is_flag=True, help="Serve the demo model with the example tasks.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="YAML file of settings.")
@settings_options
def serve(demo: bool, config: Path | None, **flags: Any) -> None:
    """Serve decisions over HTTP.

    Every setting is a flag, a variable (DEMUR_PORT for --port) or a key of the YAML file (port), in that order.
    SIGHUP reloads tasks and bundles; SIGTERM finishes what is in flight and ends, a second one ends at once.
    """
    try:
        settings = load_settings(flag_values(flags), environ=os.environ, config=config)
    except SettingsError as error:
        fail(str(error), status=2)
    if demo:
        settings = settings.model_copy(update=demo_settings(settings))
    sys.exit(run_server(settings, demo=demo))


def demo_settings(given: Settings) -> dict[str, Any]:
    """What `--demo` stands for, where nothing else was given."""
    from demur.server.demo_model import ADAPTER, DEMO_MODEL_NAME, PLAIN_MODEL_NAME, DemoModelMissing
    from demur.server.demo_model import export_demo_model as export

    settings: dict[str, Any] = {}
    if given.model is None:
        try:
            plain = not ADAPTER.is_dir()
            settings["model"] = str(export(DEMO_MODEL, plain=plain, renew=True))
        except (DemoModelMissing, OSError) as error:
            fail(str(error))
        settings["model_name"] = given.model_name or (PLAIN_MODEL_NAME if plain else DEMO_MODEL_NAME)
    examples, bundles = Path("examples/tasks"), Path("examples/bundles")
    if given.tasks is None and examples.is_dir():
        settings["tasks"] = examples
        if given.bundles is None and bundles.is_dir():
            settings["bundles"] = bundles
    if given.state_dir is None and given.store_url is None:
        settings["state_dir"] = DEMO_STATE
    return settings


def run_server(settings: Settings, *, demo: bool) -> int:
    """Runs the server in this process; returns its exit status."""
    if settings.model is None:
        fail("no model: give --model DIR, or --demo", status=2)
    # Imported here: everything above answers at once.
    from demur.decision.errors import DecisionError, TaskFileError
    from demur.server.ending import LAST_S, end_after, end_now
    from demur.server.logs import logging_config
    from demur.server.serve import EXIT_ENGINE, EXIT_STORE, DemurServer
    from demur.server.store.errors import StoreUnreachable

    logging.config.dictConfig(logging_config(settings.log_level))
    server = DemurServer(
        settings,
        on_ready=_print_example if demo else None,
        on_failure=lambda: end_after(LAST_S, EXIT_ENGINE),
    )
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        status = run(server.run())
    except (SettingsError, TaskFileError) as error:
        fail(str(error), status=2)
    except StoreUnreachable as error:
        fail(f"{error}; start again when it can be reached", status=EXIT_STORE)
    except (DecisionError, OSError) as error:
        fail(str(error))
    if status == EXIT_ENGINE:
        end_now(status)
    return status


def _print_example(url: str, tasks: Mapping[str, Task]) -> None:
    """A line to try, for the last task that has an example."""
    for task in reversed(list(tasks.values())):
        if task.examples:
            body = json.dumps({"task": task.name, "input": task.examples[0]}, ensure_ascii=False)
            click.echo(
                f"\nReady. Try:\n\n  curl -s {url}/decide -H 'content-type: application/json' \\\n    -d '{body}'\n"
            )
            return


def fail(message: str, *, status: int = 1) -> NoReturn:
    """Ends with a message on standard error."""
    click.echo(f"demur: {message}", err=True)
    sys.exit(status)
