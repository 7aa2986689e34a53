"""Where the wires find registered tasks and their bundles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from demur.decision.task import Task
from demur.server.bundles import ServedBundle


class TaskRegistry(Protocol):
    """Registered tasks by name. A reload replaces `current` as a whole, so that a request sees one version."""

    @property
    def current(self) -> Mapping[str, Task]:
        """All tasks, by name."""
        ...

    @property
    def bundles(self) -> Mapping[str, ServedBundle]:
        """The bundles that tasks are served with, by the task's name."""
        ...


@dataclass(slots=True)
class Registry:
    """A registry that is reloaded by assigning to its members."""

    current: Mapping[str, Task]
    bundles: Mapping[str, ServedBundle] = field(default_factory=dict)
