"""The answers of `GET /tasks`, `/healthz`, `/readyz` and `/version`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Out(BaseModel):
    """Base of answer models. They describe answers; what is sent is built by hand, and tests compare the two."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StatusOut(Out):
    """The server is alive, or ready."""

    status: Literal["ok", "ready"]


class VersionOut(Out):
    """What runs here."""

    version: str
    model: str


class _TaskHead(Out):
    name: str
    description: str | None
    content_hash: str
    question: str
    mode: Literal["direct", "reasoned"]


class TaskSummaryOut(_TaskHead):
    """A registered task."""

    options: list[str]
    readout: Literal["letter", "text"]


class TasksOut(Out):
    """All registered tasks."""

    tasks: list[TaskSummaryOut]


class OptionOut(Out):
    """An option."""

    name: str
    description: str | None


class TaskOut(_TaskHead):
    """A registered task, as its file says it."""

    options: list[OptionOut]
    readout: dict[str, Any]
    thought: dict[str, Any]
    layout: dict[str, Any]
    truncation: Literal["refuse", "head", "tail"]
    max_input_tokens: Annotated[int, Field(ge=1)] | None
    policy: dict[str, Any]
    examples: list[str]
    explain: bool
    log_inputs: bool
    audit: dict[str, float]
    show_audit: bool
    double_label: float
    slice_by: str | None = Field(description="The member of the input that parts traffic into slices.")
