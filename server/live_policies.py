"""Policies that operators set while the server runs: versioned, with who and when, and kept across restarts.

A live policy stands in for that of the task's file until the next one is set. Version 0 is the file's. They are kept in
`policies.jsonl` of the state directory, one JSON object a version, the file replaced as a whole; without a directory
they last as long as the process.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demur.decision.policy import policy_faults
from demur.decision.task import PolicyKind, PolicySpec, Scale, Task
from demur.server.errors import Conflict
from demur.server.settings import SettingsError

FILE = "policies.jsonl"


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One version of a task's policy. `changed_by` is a key's id, None where no keys are configured or for a file.

    `options` are the names of those it was set for, in order.
    """

    task: str
    version: int
    policy: PolicySpec
    changed_at: datetime | None = None
    changed_by: str | None = None
    options: tuple[str, ...] = ()


class LivePolicies:
    """All tasks' policies as they are now. Raises SettingsError for a state file that cannot be read."""

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / FILE
        self._versions: Mapping[str, tuple[PolicyVersion, ...]] = {}
        self._lock = asyncio.Lock()
        if self._path is not None and self._path.exists():
            self._versions = _by_task(_read(self._path))

    def of(self, task: Task) -> PolicySpec:
        """The policy in force for a task."""
        return self.current(task).policy if task.name in self._versions else task.policy

    def current(self, task: Task) -> PolicyVersion:
        """The version in force. One that no longer fits the task, whose options have changed, gives way to its file."""
        for version in reversed(self._versions.get(task.name, ())):
            if still_fits(version.policy, version.options, task):
                return version
            break
        return PolicyVersion(task.name, 0, task.policy)

    def history(self, task: Task) -> Sequence[PolicyVersion]:
        """All live versions, oldest first."""
        return self._versions.get(task.name, ())

    async def replace(self, task: Task, policy: PolicySpec, *, by: str | None, expected: int | None) -> PolicyVersion:
        """Sets a task's policy. Raises `Conflict` if `expected` is given and is not the version in force.

        When this returns, the version is on disk, if there is a state directory.
        """
        async with self._lock:
            present = self.current(task)
            if expected is not None and expected != present.version:
                raise Conflict(
                    f"the policy is at version {present.version}, not {expected}; read it again before changing it",
                    version=present.version,
                )
            known = self._versions.get(task.name, ())
            latest = known[-1].version if known else 0
            options = task.spec.question.names
            version = PolicyVersion(task.name, latest + 1, policy, datetime.now(UTC), by, options)
            versions = {**self._versions, task.name: (*known, version)}
            if self._path is not None:
                lines = _lines([one for each in versions.values() for one in each])
                await asyncio.to_thread(replace_file, self._path, lines)
            self._versions = versions
            return version


def still_fits(policy: PolicySpec, options: Sequence[str], task: Task) -> bool:
    """Whether a policy that was set when a task had these options still says what was meant by it.

    A matrix of costs goes by the options' places, so that it must be of the same ones in the same order.
    """
    names = task.spec.question.names
    return not any(policy_faults(policy, len(names))) and (policy.cost is None or tuple(options) == names)


def policy_members(policy: PolicySpec) -> dict[str, Any]:
    """A policy as JSON says it, the kind spelt out."""
    return {**asdict(policy), "kind": policy.rule}


def stored_policy(members: Mapping[str, Any]) -> PolicySpec:
    """The policy that `policy_members` said. Raises ValueError, TypeError."""
    policy = dict(members)
    if set(policy) != {field.name for field in fields(PolicySpec)}:
        raise ValueError("not the members of a policy")
    cost = policy["cost"]
    policy["kind"], policy["scale"] = PolicyKind(policy["kind"]), Scale(policy["scale"])
    policy["cost"] = None if cost is None else tuple(tuple(float(value) for value in row) for row in cost)
    return PolicySpec(**policy)


def replace_file(path: Path, text: str) -> None:
    """Puts a text into a file as a whole: a reader, or a crash, finds the one before or this one, on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _by_task(versions: Sequence[PolicyVersion]) -> Mapping[str, tuple[PolicyVersion, ...]]:
    found: dict[str, tuple[PolicyVersion, ...]] = {}
    for version in versions:
        found[version.task] = (*found.get(version.task, ()), version)
    return found


def _read(path: Path) -> list[PolicyVersion]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"state_dir: cannot read {path}: {type(error).__name__}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_version(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            raise SettingsError(f"{path}:{number} is not a version of a policy; mend or remove the line") from None
    return found


def _version(stored: Mapping[str, Any]) -> PolicyVersion:
    return PolicyVersion(
        str(stored["task"]),
        int(stored["version"]),
        stored_policy(stored["policy"]),
        datetime.fromisoformat(stored["changed_at"]),
        stored["changed_by"],
        tuple(map(str, stored.get("options", ()))),
    )


def _lines(versions: Sequence[PolicyVersion]) -> str:
    return "\n".join(
        json.dumps(
            {
                "task": version.task,
                "version": version.version,
                "policy": policy_members(version.policy),
                "changed_at": version.changed_at.isoformat() if version.changed_at else None,
                "changed_by": version.changed_by,
                "options": list(version.options),
            }
        )
        for version in versions
    )
