"""Registered tasks as files in a directory of their own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.questions import OPTIONS, QUESTION
from benchmarks.serving.servers import CACHE

TASK = "bank_team"


def task_directory(name: str, tasks: Mapping[str, tuple[str, Mapping[str, str]]]) -> Path:
    """Writes `{task name: (question, options)}` and returns the directory."""
    directory = CACHE / "tasks" / name
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.yaml"):
        old.unlink()
    for task, (question, options) in tasks.items():
        listed: Sequence[Any] = [
            {"name": option, "description": text} if text else option for option, text in options.items()
        ]
        # JSON is YAML, too.
        content = {"name": task, "question": question, "options": listed, "readout": "letter"}
        (directory / f"{task}.yaml").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return directory


def bank() -> Path:
    """The directory of the one task that most comparisons use."""
    return task_directory("bank", {TASK: (QUESTION, OPTIONS)})
