"""The bodies of TypeSafe's contract: what is read and what is answered."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from demur.decision.question import MAX_OPTIONS, MIN_OPTIONS
from demur.server.types import Reason, Verdict
from demur.server.wires.calibration_models import CalibrationOut, CertificateOut
from demur.server.wires.faults import SliceName, Text

MAX_LEVELS = 10

Structured = str | dict[str, Any] | list[Any]
Probability = Annotated[float, Field(ge=0, le=1)]


class Lenient(BaseModel):
    """Base of request models: nothing is converted; unknown fields are ignored, as the contract has it."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Criteria(BaseModel):
    """What counts as yes and as no."""

    # Unlike elsewhere nothing unknown is ignored: criteria under another name would silently not count.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    true: Structured | None = None
    false: Structured | None = None


class Noul(Lenient):
    """A yes/no question."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["instructions"], "properties": {"instructions": {"not": {"type": "null"}}}},
                {"required": ["criteria"], "properties": {"criteria": {"type": "object", "minProperties": 1}}},
            ]
        }
    )

    type: Literal["noul"]
    instructions: Structured | None = None
    criteria: Criteria | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> "Noul":
        if self.instructions is None and (
            self.criteria is None or (self.criteria.true is None and self.criteria.false is None)
        ):
            raise ValueError("a noul needs instructions or criteria")
        return self


class Choice(Lenient):
    """One of several options, given by name with a description or null."""

    type: Literal["choice"]
    instructions: Structured | None = None
    criteria: Annotated[dict[Text, Structured | None], Field(min_length=MIN_OPTIONS, max_length=MAX_OPTIONS)]


class Score(Lenient):
    """A rating against levels, lowest first."""

    type: Literal["score"]
    instructions: Structured | None = None
    criteria: Annotated[list[Structured], Field(min_length=2, max_length=MAX_LEVELS)]


class Registered(BaseModel):
    """Demur's extension of the contract: a registered task, which brings its own question and calibration."""

    # As for criteria, nothing unknown is ignored: instructions here would silently not count.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    type: Literal["task"]
    task: Text = Field(description="Its name.")
    slice: SliceName | None = Field(None, description="Of the task's traffic, where the state does not name its own.")


AnyQuestion = Annotated[Noul | Choice | Score | Registered, Field(discriminator="type")]


def _no_assets(value: Any) -> Any:
    if value is not None:
        raise ValueError("this model reads text only, so assets would go unread")
    return value


class SystemOneIn(Lenient):
    """Questions about one state."""

    model: str = Field(description="A name that GET /v1/models lists.")
    state: Structured
    questions: Annotated[dict[Annotated[str, Field(min_length=1)], AnyQuestion], Field(min_length=1)]
    assets: Annotated[Any, AfterValidator(_no_assets), Field(json_schema_extra={"type": "null"})] = None


class Out(BaseModel):
    """Base of answer models. They describe answers; what is sent is built by hand, and tests compare the two."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Extras(Out):
    """What the native wire says of the same decision."""

    id: str
    task: str | None = Field(description="Null for a question that is no registered task.")
    verdict: Verdict
    reason: Reason
    reason_detail: str | None
    p_correct: Probability | None
    score: float | None
    calibration: CalibrationOut | None
    certificate: CertificateOut | None
    label_mass: Probability
    truncated: bool


class NoulOut(Out):
    """Probability of yes."""

    type: Literal["noul"]
    noul: Probability
    x_demur: Extras


class ChoiceOut(Out):
    """The most probable option."""

    type: Literal["choice"]
    choice: str
    probabilities: dict[str, Probability]
    confidence: Probability
    x_demur: Extras


class ScoreOut(Out):
    """The expected level."""

    type: Literal["score"]
    score: float
    legend: dict[str, Structured]
    probabilities: dict[str, Probability]
    confidence: Probability
    x_demur: Extras


class TokensOut(Out):
    """Tokens of all questions together."""

    input_tokens: int
    output_tokens: int


class TotalsOut(Out):
    """Cached tokens and engine reads of all questions together."""

    cached_tokens: int
    reads: int


class SystemOneOut(Out):
    """One answer a question, under the question's id."""

    model: str
    answers: dict[str, Annotated[NoulOut | ChoiceOut | ScoreOut, Field(discriminator="type")]]
    usage: TokensOut
    x_demur: TotalsOut


class ModelOut(Out):
    """A model name, for TypeSafe's callers."""

    name: str
    description: str
    release_date: str


class ModelObject(Out):
    """The same for OpenAI's callers."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsOut(Out):
    """All names that the server answers to, in both forms."""

    models: list[ModelOut]
    object: Literal["list"]
    data: list[ModelObject]


class DetailItem(BaseModel):
    """One fault of a body."""

    loc: list[str | int]
    msg: str
    type: str


class ValidationOut(Out):
    """Every fault of a body."""

    detail: list[DetailItem]


class ErrorDetail(BaseModel):
    """What went wrong."""

    error_type: str
    message: str


class ErrorOut(Out):
    """Any other error."""

    detail: ErrorDetail
