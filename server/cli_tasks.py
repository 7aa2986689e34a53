"""`demur tasks`: checking task files."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from demur.decision.errors import TaskFileError
from demur.decision.task import Task
from demur.server.cli_options import adapter_option, check_model_options

Rows = list[tuple[str, str | None]]


@click.group()
def tasks() -> None:
    """Work with task files."""


@tasks.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", help="Check the labels with this model's tokenizer, and compare readouts.")
@adapter_option
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Labelled rows to compare by."
)
def check(files: tuple[Path, ...], model: str | None, adapter: Path | None, data: Path | None) -> None:
    """Check task FILES, or directories of them. Every fault is shown with file, line and remedy; any gives status 1.

    With a model, its tokenizer must keep the options apart, and the readouts are compared on the rows of --data (JSON
    lines with `input` and `label`, for a single task) or else on the task's examples: label mass says how much of the
    model's probability falls on the options at all, accuracy how often the decision is the label.
    """
    from demur.server.tasks import read_tasks

    check_model_options(model, adapter)
    wrong = False
    good: list[Task] = []
    places: list[Path] = []
    for path in files:
        try:
            found = read_tasks(path)
            if not found:
                wrong = True
                click.echo(f"{path} has no task files (*.yaml, *.yml)", err=True)
            good += found.values()
            places += [path] * len(found)
        except TaskFileError as error:
            wrong = True
            click.echo(str(error), err=True)
    if data is not None and (model is None or len(good) != 1):
        raise click.UsageError("--data wants --model and one task")
    for task in good:
        spec = task.spec
        click.echo(
            f"{task.name}: {len(spec.question.options)} options, {spec.readout.kind} readout, {spec.mode} mode, "
            f"hash {task.content_hash[:12]}"
        )
    if model is not None and good:
        rows = None if data is None else read_rows(data, good[0])
        wrong = asyncio.run(_with_model(good, places, model, adapter, rows)) or wrong
    sys.exit(1 if wrong else 0)


def read_rows(path: Path, task: Task) -> Rows:
    """Pairs of input and label. Every row that is no such pair is named as the command ends."""
    from demur.decision.errors import DataFileError
    from demur.decision.labelled import read_labelled

    try:
        data = read_labelled(path, task.spec.question)
    except DataFileError as error:
        raise click.ClickException(str(error)) from None
    if data.options_vary:
        raise click.ClickException(f"{path}: rows have questions of their own; readouts are compared on the task's")
    names = task.spec.question.names
    return [(row.text, None if row.label is None else names[row.label]) for row in data.rows]


async def _with_model(
    good: Sequence[Task], places: Sequence[Path], model: str, adapter: Path | None, rows: Rows | None
) -> bool:
    """Checks and compares the tasks, which were read from these places; returns whether anything is wrong."""
    from demur.decision.taskfile import check_task
    from demur.server.compare import compare_readouts
    from demur.server.decide import DecidePipeline
    from demur.server.engines.identity import ModelUnusable
    from demur.server.engines.vllm_engine import VllmEngine
    from demur.server.engines.vllm_setup import VllmSettings
    from demur.server.errors import DemurError
    from demur.server.tasks import task_path

    try:
        engine = await VllmEngine.start(VllmSettings(model=model, adapter=adapter))
    except ModelUnusable as error:
        raise click.ClickException(str(error)) from None
    try:
        pipeline = DecidePipeline(engine, max_input_tokens=engine.identity.max_model_len)
        wrong = False
        for task, place in zip(good, places, strict=True):
            faults = check_task(task_path(place, task.name), pipeline.prompts)
            for fault in faults:
                wrong = True
                click.echo(str(fault), err=True)
            known: Rows = rows or [(example, None) for example in task.examples]
            if faults or not known:
                continue
            click.echo(f"\n{task.name}, {len(known)} inputs:\n  readout      label mass  accuracy")
            for trial in await compare_readouts(pipeline, task, known):
                accuracy = "" if trial.accuracy is None else f"{trial.accuracy:.3f}"
                click.echo(f"  {trial.name:<12} {trial.label_mass:>10.3f}  {accuracy:>8}  {trial.note or ''}".rstrip())
        return wrong
    except DemurError as error:
        raise click.ClickException(error.detail) from None
    finally:
        await engine.aclose()
