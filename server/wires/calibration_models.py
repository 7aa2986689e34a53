"""Bodies about calibration and policies: what is read and what is answered."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from demur.decision.policy import MAX_PRICE
from demur.decision.question import MAX_OPTIONS
from demur.decision.task import PolicyKind
from demur.server.wires.faults import Strict

JsonInput = Annotated[Any, WithJsonSchema({"type": ["string", "number", "boolean", "object", "array"]})]
Chance = Annotated[float, Field(ge=0, le=1)]
Price = Annotated[float, Field(ge=0, le=MAX_PRICE)]


class Out(BaseModel):
    """Base of answer models. They describe answers; what is sent is built by hand, and tests compare the two."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class CalibrationOut(Out):
    """How `p_correct` was obtained."""

    method: str
    bundle: str
    n: int = Field(description="Labels that the calibrator was fitted on.")
    fitted_at: str


class CertificateOut(Out):
    """Error among decisions whose `score` is at least `threshold` is at most `alpha`, but for a chance of `delta`."""

    alpha: Chance
    delta: Chance
    threshold: float
    n: int = Field(description="Rows that certified.")
    score: str
    attempt: int | None
    issued_at: str
    expires_at: str | None
    slice: str | None = Field(description="The part of the traffic that it speaks of; null for all of it.")


State = Literal["valid", "starved", "expired", "withdrawn", "unknown", "nothing_certified"]


class TaskCalibrationOut(Out):
    """What a task's verdicts rest on."""

    task: str
    bundle: str | None = Field(description="Null where the task has none.")
    created_at: str | None
    mismatches: list[str] = Field(description="Pinned parts that are not what is running: then it is not applied.")
    calibration: CalibrationOut | None
    valid: bool = Field(description="Whether trust is certified now, in some slice at least.")
    states: dict[str, State] = Field(description="How each certificate stands, by slice; of all traffic under ''.")
    certificate: dict[str, Any] | None = Field(description="As the bundle has it, with evidence and assumptions.")
    report: dict[str, Any] | None = Field(description="The evaluation, as the bundle has it.")


class TaskPolicyIn(Strict):
    """A policy, as in a task file; `version` is the one that it is to replace."""

    kind: Literal["fixed_thresholds", "certified", "expected_cost", "budget"] | None = None
    allow_uncalibrated: bool = False
    trust_at: Chance | None = None
    defer_below: Chance | None = None
    min_label_mass: Chance | None = None
    scale: Literal["p_correct", "score"] = "p_correct"
    cost: (
        Annotated[
            list[Annotated[list[Price], Field(min_length=2, max_length=MAX_OPTIONS)]],
            Field(min_length=2, max_length=MAX_OPTIONS),
        ]
        | None
    ) = None
    review_price: Price | None = None
    defer_price: Price | None = None
    to_people: Chance | None = None
    version: Annotated[int, Field(ge=0)] | None = None


class PolicyMembersOut(Out):
    """The members of a policy, those that are not given as null."""

    kind: PolicyKind
    allow_uncalibrated: bool
    trust_at: float | None
    defer_below: float | None
    min_label_mass: float | None
    scale: Literal["p_correct", "score"]
    cost: list[list[float]] | None
    review_price: float | None
    defer_price: float | None
    to_people: float | None


class PolicyVersionOut(Out):
    """A policy that was set while the server ran."""

    version: int
    policy: PolicyMembersOut
    changed_at: str | None
    changed_by: str | None = Field(description="Id of the key; never the key.")


class SlicePolicyOut(Out):
    """What the policy carries for one slice."""

    certificate: CertificateOut | None
    certified_thresholds: list[float]


class TaskPolicyOut(PolicyVersionOut):
    """The policy in force. Version 0 is the task file's."""

    task: str
    certificate: CertificateOut | None = Field(description="What the trusted set of this policy carries now.")
    certified_thresholds: list[float] = Field(description="On `score`; the trusted set at one of these is certified.")
    slices: dict[str, SlicePolicyOut] = Field(description="The same by slice, where the task parts its traffic.")
    history: list[PolicyVersionOut]


class ShadowPolicyOut(Out):
    """A policy that judges beside the one in force. `id` is a hash of what it says."""

    task: str
    id: str
    policy: PolicyMembersOut
    set_at: str
    set_by: str | None = Field(description="Id of the key; never the key.")


_Level = Annotated[float, Field(gt=0, lt=1)]


class ReadingsIn(Strict):
    """Inputs to be read raw; none at all asks only what reads them."""

    inputs: list[JsonInput]


class ReadingOut(Out):
    """Log-probabilities of the options up to a constant (null: zero probability); or why there are none."""

    scores: list[float | None] | None = None
    label_mass: Chance | None = None
    trained_on: bool = Field(False, description="The checkpoint was trained on it, so it is no evidence.")
    problem: dict[str, Any] | None = None


class ReadingsOut(Out):
    """Raw readings of a task, and the hashes of all that they depend on."""

    task_hash: str
    model: str
    pins: dict[str, str]
    readout: str
    items: list[ReadingOut]


class CalibrateIn(Strict):
    """Labelled rows, as in a data file, and what is to be promised."""

    rows: list[dict[str, Any]]
    unlabelled: list[dict[str, Any]] | None = Field(
        None, description="Further rows of the same traffic; they choose where to test, and their labels are not read."
    )
    alpha: _Level = Field(0.05, description="Largest error among trusted decisions.")
    beta: _Level = Field(0.3, description="Largest error among decisions that are not deferred.")
    delta: _Level = Field(0.05, description="Chance that the procedure certifies what is false.")
    family: Annotated[int, Field(ge=1)] = Field(1, description="Configurations compared on these rows.")
    attempt: Annotated[int, Field(ge=1)] | None = Field(None, description="Number of this attempt, if there are more.")
    route: Literal["label_free", "split"] = "label_free"
    valid_days: Annotated[int, Field(ge=1, le=36500)] = Field(90, description="Days until the certificate expires.")


class CertifiedOut(Out):
    """What one chain certified: `threshold` is null where nothing was."""

    alpha: Chance
    delta: Chance
    threshold: float | None
    coverage: Chance
    n: int
    errors: int


class ChainsOut(Out):
    """What was certified of one slice."""

    trusted: CertifiedOut | None
    not_deferred: CertifiedOut | None


class MadeOut(ChainsOut):
    """The bundle that was made and is served from now on."""

    task: str
    bundle: str
    summary: str
    refusal: str | None = Field(description="Why the labels could not be learned from.")
    calibrator: str
    n: int
    certifying: int
    slices: dict[str, ChainsOut] = Field(description="By slice, where the task parts its traffic.")
