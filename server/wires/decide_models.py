"""The bodies of `POST /decide`: what is read and what is answered."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from demur.decision.question import MAX_OPTIONS, MIN_OPTIONS
from demur.decision.task import PolicyKind
from demur.server.types import Reason, Verdict
from demur.server.wires.calibration_models import CalibrationOut, CertificateOut
from demur.server.wires.faults import SliceName, Strict, Text

Probability = Annotated[float, Field(ge=0, le=1)]
JsonInput = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": ["string", "number", "boolean", "object", "array"],
            "description": "Text, or JSON that is rendered canonically.",
        }
    ),
]


def _or(short: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Lets a model's schema say that a short form is accepted too."""

    def alter(schema: dict[str, Any]) -> None:
        long = dict(schema)
        schema.clear()
        schema["anyOf"] = [short, long]

    return alter


class OptionIn(Strict):
    """An option: its name, or name and description."""

    model_config = ConfigDict(json_schema_extra=_or({"type": "string", "pattern": r"\S"}))

    name: Text
    description: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class ReadoutIn(Strict):
    """Which tokens stand for an option, and how labels of different lengths compare."""

    model_config = ConfigDict(json_schema_extra=_or({"type": "string", "enum": ["letter", "text"]}))

    kind: Literal["letter", "text"] = "letter"
    length: Literal["sum", "mean", "prior"] = "sum"

    @model_validator(mode="before")
    @classmethod
    def _bare_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class ThoughtIn(Strict):
    """Budget and sampling of the thought in reasoned mode."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_ms: Annotated[int, Field(ge=1, le=600_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    markers: bool | None = None


class PolicyIn(Strict):
    """Thresholds for this request; they can only tighten the task's."""

    trust_at: Probability | None = None
    defer_below: Probability | None = None
    min_label_mass: Probability | None = None


_NULL = {"type": "null"}
#: The rules of `wires.decide` on which fields go together, as far as a schema can say them.
_ALTERNATIVES: dict[str, Any] = {
    "allOf": [
        {
            "anyOf": [
                {
                    "required": ["task"],
                    "properties": {
                        "task": {"type": "string"},
                        **dict.fromkeys(("question", "options", "readout", "thought", "truncation"), _NULL),
                    },
                },
                {
                    "required": ["question", "options"],
                    "properties": {
                        "task": _NULL,
                        "slice": _NULL,
                        "question": {"type": "string"},
                        "options": {"type": "array"},
                    },
                },
            ]
        },
        {
            "anyOf": [
                {"required": ["input"], "properties": {"inputs": _NULL}},
                {"required": ["inputs"], "properties": {"inputs": {"type": "array"}, "input": False}},
            ]
        },
    ]
}


class DecideIn(Strict):
    """Either `task`, or `question` and `options`; either `input`, or `inputs`."""

    model_config = ConfigDict(json_schema_extra=_ALTERNATIVES)

    task: str | None = Field(None, description="Name of a registered task.")
    question: Text | None = Field(None, description="An inline question.")
    options: Annotated[list[OptionIn], Field(min_length=MIN_OPTIONS, max_length=MAX_OPTIONS)] | None = Field(
        None, description="Its options, in the order in which the model reads them."
    )
    readout: ReadoutIn | None = Field(None, description="Of an inline question; letter if not given.")
    thought: ThoughtIn | None = Field(None, description="Of an inline question.")
    truncation: Literal["refuse", "head", "tail"] | None = Field(
        None, description="Of an inline question: what to do with an input that does not fit; refuse if not given."
    )
    input: JsonInput = None
    inputs: Annotated[list[JsonInput], Field(min_length=1)] | None = Field(None, description="A batch of inputs.")
    slice: SliceName | None = Field(
        None, description="The slice of a task's traffic, for inputs that do not name their own."
    )
    mode: Literal["direct", "reasoned"] | None = Field(None, description="Decide at once, or after a thought.")
    policy: PolicyIn | None = None
    explain: bool = Field(False, description="Answer with the thought, where there is one.")
    subject: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Whom the input is about; stored decisions can be deleted by it. Kept as a keyed hash."
    )


class Out(BaseModel):
    """Base of answer models. They describe answers; what is sent is built by hand, and tests compare the two."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class UsageOut(Out):
    """Tokens summed over the reads, tokens of thought, and reads of the engine."""

    prompt_tokens: int
    cached_tokens: int
    thought_tokens: int
    reads: int


class TimingsOut(Out):
    """Milliseconds: of the decision in all, and of that in the engine."""

    total_ms: float
    engine_ms: float


class AnswerOut(Out):
    """A decision."""

    id: str
    task: str | None = Field(description="Null for an inline question.")
    task_hash: str | None = Field(description="Content hash of the task; null for an inline question.")
    decision: str = Field(description="Name of the chosen option.")
    verdict: Verdict
    reason: Reason
    reason_detail: str | None = Field(description="What the reason leaves open.")
    rule: PolicyKind = Field(description="Kind of the policy in force.")
    p_correct: Probability | None = Field(description="Calibrated probability that the decision is right.")
    score: float | None = Field(description="What the bundle ranks and certifies decisions by.")
    probabilities: dict[str, Probability] = Field(description="Of every option, in order; they sum to 1.")
    label_mass: Probability = Field(description="Probability of all the labels among all tokens.")
    calibration: CalibrationOut | None = Field(description="How `p_correct` was obtained.")
    certificate: CertificateOut | None = Field(description="What is guaranteed of the decisions trusted by this rule.")
    model: str
    mode: Literal["direct", "reasoned"]
    readout: str
    readout_note: str | None
    truncated: bool = Field(description="Whether the input was cut to fit.")
    audit: bool | None = Field(None, description="Whether it was drawn for audit; only where the task shows that.")
    usage: UsageOut
    timings: TimingsOut
    thought: str | None = Field(description="Only if `explain` asked for it.")
    thought_finish: str | None


class FaultOut(Out):
    """One thing wrong with a body."""

    path: list[str | int]
    message: str
    type: str


class ProblemOut(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    faults: list[FaultOut] | None = None
    request_id: str | None = None


class ItemOut(Out):
    """The outcome of one input of a batch: an answer with status 200, or a problem with its own status."""

    status: int
    answer: AnswerOut | None = None
    problem: ProblemOut | None = None


class BatchOut(Out):
    """One item an input, in order."""

    items: list[ItemOut]
