"""Checkpoints, and other folders, that are whole or not there: written aside, then renamed."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

_NAME = re.compile(r"checkpoint-([0-9]+)")

#: How the names of folders end that are not whole yet.
WRITING = ".writing"
#: Where a checkpoint is written before it has its name.
ASIDE = "checkpoint" + WRITING
#: In a checkpoint: what was measured on the evaluation sets, if anything was.
EVALUATION = "evaluation.json"


class WholeCheckpoints:
    """Mixed into a transformers Trainer: its checkpoints appear whole, of which the newest stay.

    `keep`: how many. `best_by`: the evaluation set by whose NLL the best one stays too.
    """

    keep: int = 2
    best_by: str | None = None

    def evaluation(self) -> dict[str, dict[str, float]]:
        """What a checkpoint notes of the evaluation sets."""
        return {}

    def _run_epoch(self: Any, *arguments: Any, **more: Any) -> None:
        # transformers counts a run's steps only behind one, so a finished run that goes on would take one too many.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **more)  # type: ignore[misc]

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        self.args.output_dir = str(folder / ASIDE)
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self.args.output_dir = str(folder)
        found = self.evaluation()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = folder / ASIDE / f"checkpoint-{self.state.global_step}"
            if found:
                (written / EVALUATION).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            publish(written, folder, keep=self.keep, best_by=self.best_by)
        self.accelerator.wait_for_everyone()


def publish(written: Path, folder: Path, *, keep: int, best_by: str | None = None) -> Path:
    """Gives a finished checkpoint its place in `folder`, and removes all but the `keep` newest and the best."""
    target = put(written, folder / written.name)
    spared = None if best_by is None else best(folder, best_by)
    for old in complete(folder)[:-keep]:
        if old != spared:
            shutil.rmtree(old)
    return target


def put(written: Path, target: Path) -> Path:
    """Gives a finished folder its name, in place of what had it.

    What was written is on the disk before it has its name, so a name never stands for half of it.
    """
    for path in (*written.rglob("*"), written):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    written.rename(target)
    _sync(target.parent)
    return target


def best(folder: Path, evaluated: str) -> Path:
    """The checkpoint with the least NLL on the evaluation set of that name, the earliest of equals."""

    def nll(checkpoint: Path) -> float:
        return float(json.loads((checkpoint / EVALUATION).read_text(encoding="utf-8"))[evaluated]["nll"])

    return min(complete(folder), key=nll)


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest(folder: Path) -> Path | None:
    """The newest checkpoint, None without one."""
    found = complete(folder)
    return found[-1] if found else None


def clear(folder: Path) -> None:
    """Removes what a killed run left half-written."""
    for path in folder.glob(f"*{WRITING}"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
