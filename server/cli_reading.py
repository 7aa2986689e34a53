"""What `demur calibrate` and `demur evaluate` share: who reads which rows, and what may go wrong."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from demur.server.cli_options import adapter_option, check_model_options, dtype_option

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
NEW = click.Path(path_type=Path)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options on what is read and by whom."""
    options = (
        click.option("--task", "task_file", required=True, type=FILE, help="Task file."),
        click.option("--data", required=True, type=FILE, help="Labelled rows, JSON Lines."),
        click.option("--model", help="Read in this process with this model."),
        adapter_option,
        dtype_option,
        click.option("--model-name", help="What reports call it; its directory's name by default."),
        click.option("--url", help="Read through this server, which serves the same task; its admin key is needed."),
        click.option("--concurrency", default=32, show_default=True, type=click.IntRange(1, 512), help="Rows at once."),
        click.option("--reads", type=NEW, help="File that keeps what was read.  [default: beside --out]"),
    )
    return functools.reduce(lambda made, option: option(made), reversed(options), command)


def make_source(model: str | None, adapter: Path | None, dtype: str | None, name: str | None, url: str | None) -> Any:
    """The source that was named. Raises click.UsageError unless it is one of the two."""
    from demur.server.gather import Source

    if (model is None) == (url is None):
        raise click.UsageError("give either --model or --url")
    check_model_options(model, adapter, dtype)
    return Source(model, adapter, dtype, name, url)


class Explained:
    """Turns what may go wrong into a message and an exit status; gives the file that keeps the reads."""

    def __init__(self, reads: Path) -> None:
        self._reads = reads

    def __enter__(self) -> Path:
        return self._reads

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        from demur.calibration import CalibrationError
        from demur.clients import DemurClientError
        from demur.decision.errors import DecisionError, TaskFileError
        from demur.server.engines.identity import ModelUnusable
        from demur.server.errors import DemurError

        if isinstance(error, KeyboardInterrupt):
            fail(
                f"stopped; what was read is kept in {self._reads}, and the same command goes on from there", status=130
            )
        if isinstance(error, DemurError):
            fail(f"{error.detail}; what was read is kept in {self._reads}")
        if isinstance(error, TaskFileError):
            fail(str(error), status=2)
        if isinstance(error, DecisionError | CalibrationError | ModelUnusable | DemurClientError | OSError):
            fail(str(error))


def fail(message: str, *, status: int = 1) -> NoReturn:
    """Ends with a message on standard error."""
    click.echo(f"demur: {message}", err=True)
    sys.exit(status)
