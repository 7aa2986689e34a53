"""Candidate policies that judge beside the ones in force. Kept across restarts in `shadow_policies.json`, if there is a
state directory: an object with one member a task.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from demur.decision.canonical import canonical_bytes
from demur.decision.task import PolicySpec, Task
from demur.server.live_policies import policy_members, replace_file, still_fits, stored_policy
from demur.server.settings import SettingsError
from demur.server.types import ShadowPolicy

FILE = "shadow_policies.json"


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """A shadow policy, when it was set and by which key, and the names of the options it was set for."""

    shadow: ShadowPolicy
    set_at: datetime
    set_by: str | None
    options: tuple[str, ...]


class ShadowPolicies:
    """All tasks' shadow policies as they are now. Raises SettingsError for a state file that cannot be read."""

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / FILE
        self._set: Mapping[str, SetPolicy] = {}
        self._lock = asyncio.Lock()
        if self._path is not None and self._path.exists():
            self._set = _read(self._path)

    def current(self, task: Task) -> SetPolicy | None:
        """A task's, if it has one that fits its options."""
        found = self._set.get(task.name)
        return found if found is not None and still_fits(found.shadow.policy, found.options, task) else None

    def of(self, task: Task) -> ShadowPolicy | None:
        """As `current`, the policy alone."""
        found = self.current(task)
        return None if found is None else found.shadow

    async def set(self, task: Task, policy: PolicySpec | None, *, by: str | None) -> None:
        """Sets a task's shadow policy, or ends it. When this returns that is on disk, if there is a state directory."""
        async with self._lock:
            changed = {name: one for name, one in self._set.items() if name != task.name}
            if policy is not None:
                changed[task.name] = SetPolicy(shadow_policy(policy), datetime.now(UTC), by, task.spec.question.names)
            if self._path is not None:
                await asyncio.to_thread(replace_file, self._path, json.dumps(_stored(changed), indent=1))
            self._set = changed


def shadow_policy(policy: PolicySpec) -> ShadowPolicy:
    """A policy under the hash of what it says, so that it has one name wherever it is tried."""
    return ShadowPolicy(policy, sha256(canonical_bytes(policy_members(policy))).hexdigest()[:16])


def _stored(policies: Mapping[str, SetPolicy]) -> dict[str, Any]:
    return {
        name: {
            "policy": policy_members(one.shadow.policy),
            "set_at": one.set_at.isoformat(),
            "set_by": one.set_by,
            "options": list(one.options),
        }
        for name, one in policies.items()
    }


def _read(path: Path) -> dict[str, SetPolicy]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): SetPolicy(
                shadow_policy(stored_policy(one["policy"])),
                datetime.fromisoformat(one["set_at"]),
                one["set_by"],
                tuple(map(str, one.get("options", ()))),
            )
            for name, one in stored.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise SettingsError(f"{path} does not hold shadow policies; mend or remove it") from None
