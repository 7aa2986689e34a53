"""A task: a registered decision, and the part of it that determines what the model reads."""

from dataclasses import dataclass, field
from enum import StrEnum

from demur.decision.question import Question


class ReadoutKind(StrEnum):
    """Which tokens stand for an option at the decision position."""

    LETTER = "letter"
    TEXT = "text"


class LengthHandling(StrEnum):
    """How a text readout compares labels of different lengths in tokens."""

    SUM = "sum"
    MEAN = "mean"
    PRIOR = "prior"


class Mode(StrEnum):
    """Decide at once, or after a bounded thought."""

    DIRECT = "direct"
    REASONED = "reasoned"


class Truncation(StrEnum):
    """What happens to an input that does not fit: refused, or cut so that its head or its tail remains."""

    REFUSE = "refuse"
    HEAD = "head"
    TAIL = "tail"


class PolicyKind(StrEnum):
    """What turns a decision into a verdict."""

    FIXED = "fixed_thresholds"
    CERTIFIED = "certified"
    COST = "expected_cost"
    BUDGET = "budget"


class Scale(StrEnum):
    """What fixed thresholds are compared with: `p_correct`, or the score that a bundle ranks by and certifies."""

    P_CORRECT = "p_correct"
    SCORE = "score"


#: Below this label mass a decision is deferred, unless the task says otherwise.
DEFAULT_MIN_LABEL_MASS = {ReadoutKind.LETTER: 0.1, ReadoutKind.TEXT: 1e-4}


@dataclass(frozen=True, slots=True)
class ReadoutSpec:
    """The readout a task asks for."""

    kind: ReadoutKind = ReadoutKind.LETTER
    length: LengthHandling = LengthHandling.SUM


@dataclass(frozen=True, slots=True)
class ThoughtSpec:
    """Budget and sampling settings of the thought in reasoned mode.

    `max_tokens` and `max_ms` bound it; whichever comes first ends it and the decision is read all the same.
    `markers`: wrap the thought in `<think>` markers (None: only where the tokenizer has them).
    """

    max_tokens: int = 256
    max_ms: int = 10_000
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    seed: int = 0
    markers: bool | None = None


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """The words around question, options and input.

    The prompt is `[system] question, options | input | instruction, answer_prefix`; all before the input is the same
    for every request of a task, so it is cached. None means the default wording of the readout.
    """

    system: str | None = None
    input_title: str = "Input"
    instruction: str | None = None
    answer_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class DecisionSpec:
    """All that determines how an input is read: the same spec and input give the same prompt tokens and labels."""

    question: Question
    readout: ReadoutSpec = field(default_factory=ReadoutSpec)
    mode: Mode = Mode.DIRECT
    thought: ThoughtSpec = field(default_factory=ThoughtSpec)
    layout: PromptLayout = field(default_factory=PromptLayout)
    truncation: Truncation = Truncation.REFUSE
    max_input_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """When an answer is trusted, reviewed or deferred.

    `kind`: None means `fixed_thresholds` where a threshold is given and `certified` otherwise; see `rule`.
    `trust_at`, `defer_below`: fixed thresholds in [0, 1] on `scale`, or on the raw probability where the task allows
    uncalibrated trust. `min_label_mass`: None takes the readout's default.
    `cost[i][j]`: of acting on option i when j is right, K x K; `review_price`, `defer_price`: in the same unit.
    `to_people`: the share of decisions that a budget leaves to people, in [0, 1].
    """

    allow_uncalibrated: bool = False
    trust_at: float | None = None
    defer_below: float | None = None
    min_label_mass: float | None = None
    kind: PolicyKind | None = None
    scale: Scale = Scale.P_CORRECT
    cost: tuple[tuple[float, ...], ...] | None = None
    review_price: float | None = None
    defer_price: float | None = None
    to_people: float | None = None

    @property
    def rule(self) -> PolicyKind:
        """The kind, also where none is given."""
        if self.kind is not None:
            return self.kind
        fixed = self.allow_uncalibrated or self.trust_at is not None or self.defer_below is not None
        return PolicyKind.FIXED if fixed else PolicyKind.CERTIFIED


@dataclass(frozen=True, slots=True)
class AuditSpec:
    """Share of decisions drawn for audit, by verdict, each in [0, 1]."""

    trust: float = 0.05
    review: float = 0.01
    defer: float = 0.01


@dataclass(frozen=True, slots=True)
class Task:
    """A registered decision, as its YAML file says it. `content_hash` covers everything but comments and layout.

    `log_inputs`: inputs are stored with decisions. `show_audit`: callers are told what was drawn for audit.
    `double_label`: share of audits that two people are asked about.
    `slice_by`: the member of the input by which traffic is parted into slices that are certified one by one.
    """

    name: str
    spec: DecisionSpec
    policy: PolicySpec = field(default_factory=PolicySpec)
    description: str | None = None
    examples: tuple[str, ...] = ()
    explain: bool = True
    log_inputs: bool = False
    audit: AuditSpec = field(default_factory=AuditSpec)
    show_audit: bool = False
    double_label: float = 0.0
    slice_by: str | None = None
    content_hash: str = ""
