"""What the server answers, as frozen models.

They read the answers of newer servers too: a field that this client does not know is kept in `model_extra`, and a
verdict that it does not know becomes `defer`, so that nothing unheard of is ever acted on.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Verdict(StrEnum):
    """What to do with a decision: act on it, have a person confirm it, or send it to the fallback."""

    TRUST = "trust"
    REVIEW = "review"
    DEFER = "defer"


class AnswerModel(BaseModel):
    """Base of all answers. Validation errors hide their input, since an answer may quote what was asked."""

    model_config = ConfigDict(
        frozen=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=()
    )


class Usage(AnswerModel):
    """Tokens read, of those cached, tokens of thought, and reads by the engine."""

    prompt_tokens: int
    cached_tokens: int = 0
    thought_tokens: int = 0
    reads: int = 1


class Timings(AnswerModel):
    """Milliseconds on the server: in all, and of that in the engine."""

    total_ms: float
    engine_ms: float | None = None


class Calibration(AnswerModel):
    """How `p_correct` was obtained; `n` is the labels that the calibrator was fitted on."""

    method: str
    bundle: str | None = None
    n: int | None = None
    fitted_at: str | None = None


class Certificate(AnswerModel):
    """Error among decisions with `score` from `threshold` on is at most `alpha`; the procedure errs with `delta`."""

    alpha: float
    delta: float
    threshold: float
    n: int
    score: str | None = None
    attempt: int | None = None
    issued_at: str | None = None
    expires_at: str | None = None
    slice: str | None = None


class TaskCalibration(AnswerModel):
    """What a task's verdicts rest on; `bundle` is None where it has none, and one with `mismatches` is not applied.

    `certificate` and `report` are as the bundle has them.
    """

    task: str
    bundle: str | None = None
    created_at: str | None = None
    mismatches: tuple[str, ...] = ()
    calibration: Calibration | None = None
    valid: bool = False
    certificate: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None


class PolicyVersion(AnswerModel):
    """One version of a task's policy; 0 is the file's. `changed_by` is the id of a key."""

    version: int
    policy: Mapping[str, Any]
    changed_at: str | None = None
    changed_by: str | None = None


class TaskPolicy(PolicyVersion):
    """The policy in force, the certificate that it carries, and what would carry it."""

    task: str
    certificate: Certificate | None = None
    certified_thresholds: tuple[float, ...] = ()
    history: tuple[PolicyVersion, ...] = ()


class ShadowPolicy(AnswerModel):
    """A policy that judges beside the one in force. `id` stands with the decisions that it judged."""

    task: str
    id: str
    policy: Mapping[str, Any]
    set_at: datetime
    set_by: str | None = None


class Answer(AnswerModel):
    """One decision.

    `probabilities` maps option names, in the task's order, to probabilities that sum to 1 over the options.
    `p_correct` is the calibrated probability that `decision` is right, None while the task is uncalibrated.
    `unknown_verdict` is the server's word where this client does not know it; `verdict` is then `defer`.
    """

    id: str
    decision: str
    verdict: Verdict
    reason: str
    unknown_verdict: str | None = None
    reason_detail: str | None = None
    rule: str | None = None
    p_correct: float | None = None
    score: float | None = None
    probabilities: Mapping[str, float]
    label_mass: float
    calibration: Calibration | None = None
    certificate: Certificate | None = None
    task: str | None = None
    task_hash: str | None = None
    model: str | None = None
    mode: str | None = None
    readout: str | None = None
    readout_note: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    thought: str | None = None
    thought_finish: str | None = None
    truncated: bool = False

    @model_validator(mode="before")
    @classmethod
    def _distrust_the_unknown(cls, data: Any) -> Any:
        word = data.get("verdict") if isinstance(data, dict) else None
        if isinstance(word, str) and word not in frozenset(Verdict):
            return {**data, "verdict": Verdict.DEFER, "unknown_verdict": word}
        return data

    @property
    def trusted(self) -> bool:
        """Whether the decision may be acted on without a person."""
        return self.verdict is Verdict.TRUST


class OptionInfo(AnswerModel):
    """An option of a registered task."""

    name: str
    description: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data


class TaskInfo(AnswerModel):
    """A registered task. `Client.tasks` gives a summary; `Client.task` all of it, the rest in `model_extra`."""

    name: str
    description: str | None = None
    content_hash: str | None = None
    question: str | None = None
    options: tuple[OptionInfo, ...] = ()
    mode: str | None = None


class ModelInfo(AnswerModel):
    """A model name that the server answers to."""

    id: str


class Version(AnswerModel):
    """The server's version, and the model that it serves."""

    version: str
    model: str | None = None
