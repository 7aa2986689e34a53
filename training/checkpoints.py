"""Checkpoints that are whole or not there: written aside, then renamed."""

import os
import re
import shutil
from pathlib import Path

_NAME = re.compile(r"checkpoint-([0-9]+)")

#: Where a checkpoint is written before it has its name.
ASIDE = "checkpoint.writing"


def publish(written: Path, folder: Path, *, keep: int) -> Path:
    """Gives a finished checkpoint its place in `folder`, and removes all but the `keep` newest.

    What was written is on the disk before it has its name, so a name never stands for half of it.
    """
    for path in (*written.rglob("*"), written):
        _sync(path)
    target = folder / written.name
    shutil.rmtree(target, ignore_errors=True)
    written.rename(target)
    _sync(folder)
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest(folder: Path) -> Path | None:
    """The newest checkpoint, None without one. What a killed run left half-written is removed."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    found = complete(folder)
    return found[-1] if found else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
