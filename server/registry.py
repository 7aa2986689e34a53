"""Where the wires find registered tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from demur.decision.task import Task


class TaskRegistry(Protocol):
    """Registered tasks by name. A reload replaces `current` as a whole, so that a request sees one version."""

    @property
    def current(self) -> Mapping[str, Task]:
        """All tasks, by name."""
        ...


@dataclass(slots=True)
class Registry:
    """A registry that is reloaded by assigning to `current`."""

    current: Mapping[str, Task]
