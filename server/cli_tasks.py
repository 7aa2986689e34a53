"""`demur tasks`: checking task files."""

import sys
from pathlib import Path

import click

from demur.decision.errors import TaskFileError


@click.group()
def tasks() -> None:
    """Work with task files."""


@tasks.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Check the labels too.")
def check(files: tuple[Path, ...], model: Path | None) -> None:
    """Check task FILES, or directories of them; with a model also that its tokenizer keeps the options apart.

    Every fault is shown with file, line and remedy. Exits with 1 if there is any.
    """
    from demur.decision.taskfile import load_task, load_tasks

    wrong = False
    good = []
    for path in files:
        try:
            good += load_tasks(path) if path.is_dir() else [load_task(path)]
        except TaskFileError as error:
            wrong = True
            click.echo(str(error), err=True)
    if model is not None and good:
        from transformers import AutoTokenizer

        from demur.decision.prompt import PromptBuilder
        from demur.decision.taskfile import check_task

        prompts = PromptBuilder(AutoTokenizer.from_pretrained(model))
        for task in good:
            for fault in check_task(task, prompts):
                wrong = True
                click.echo(f"{task.name}: {fault}", err=True)
    for task in good:
        spec = task.spec
        click.echo(
            f"{task.name}: {len(spec.question.options)} options, {spec.readout.kind} readout, {spec.mode} mode, "
            f"hash {task.content_hash[:12]}"
        )
    sys.exit(1 if wrong else 0)
