"""Task files as the server and the command line read them."""

from collections.abc import Mapping
from pathlib import Path

from demur.decision.task import Task
from demur.decision.taskfile import load_task, load_tasks


def read_tasks(directory: Path | None) -> Mapping[str, Task]:
    """The tasks of a directory, or of one file, by name; none without. Raises TaskFileError."""
    if directory is None:
        return {}
    if directory.is_file():
        task = load_task(directory)
        return {task.name: task}
    return load_tasks(directory)
