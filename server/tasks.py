"""Task files as the server and the command line read them."""

from collections.abc import Mapping
from pathlib import Path

from demur.decision.errors import DecisionError, LabelError, TaskFileError
from demur.decision.task import Task
from demur.decision.taskfile import SUFFIXES, label_fault, load_task, load_tasks


def read_tasks(directory: Path | None) -> Mapping[str, Task]:
    """The tasks of a directory, or of one file, by name; none without. Raises TaskFileError."""
    if directory is None:
        return {}
    if directory.is_file():
        task = load_task(directory)
        return {task.name: task}
    return load_tasks(directory)


def task_file(place: Path | None, name: str) -> bytes:
    """The file of a task, as it stands in a directory, or is `place` itself. Raises FileNotFoundError."""
    return task_path(place, name).read_bytes()


def task_path(place: Path | None, name: str) -> Path:
    """Where the file of a task lies: in a directory, or it is `place` itself. Raises FileNotFoundError."""
    paths = [] if place is None else [place] if place.is_file() else sorted(place.iterdir())
    for path in paths:
        try:
            if (path == place or path.suffix in SUFFIXES) and load_task(path).name == name:
                return path
        except TaskFileError:
            continue
    raise FileNotFoundError(f"the file of task {name} is no longer there")


def located(place: Path | None, error: LabelError) -> DecisionError:
    """The error with file and line, where the task that it names still has a file."""
    try:
        return TaskFileError([label_fault(task_path(place, error.task or ""), error)])
    except OSError:
        return error
