"""Recipes: all that determines a training run, in one strict model.

    name: csqa-calibration
    task: tasks/commonsense.yaml      # question, options, prompt and readout, as they will be served
    method: grpo
    mode: reasoned
    model: {path: Qwen/Qwen3-4B}
    data: {train: {path: data/train.jsonl, limit: 500}, evaluate: {dev: {path: data/dev.jsonl}}}
    objective: {target: paper, lambda: 0.001, policy_loss_on_decision: false}

Every default of the libraries underneath that changes a result is a field here with the value that is used, so that
a new release of theirs cannot change a run. `recipefile` reads the files.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


#: What messages and fingerprints call the training rows.
TRAIN = "train"
#: The rows that `certify` names. They are read only to see that nothing is trained or chosen on them.
CERTIFYING = "certifying"
#: The evaluation set that `data.validation` keeps out of the training rows.
VALIDATION = "validation"
#: The evaluation set that `data.folds` keeps out.
OUT_OF_FOLD = "out_of_fold"


class Strict(BaseModel):
    """A section: unknown keys are faults, nothing is converted, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


class Adapter(Strict):
    """A LoRA adapter. The head is never adapted: the decision is read with it.

    `upper_layers`: so many layers next to the head are adapted, null for all; nothing is carried back below them.
    """

    r: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.1
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    upper_layers: Positive | None = None

    @model_validator(mode="after")
    def _leaves_the_head(self) -> Self:
        if {"lm_head", "embed_tokens", "all-linear"} & set(self.targets):
            raise ValueError("`lm_head`, `embed_tokens` and `all-linear` cannot be adapted: name the layers inside")
        return self


class Model(Strict):
    """What is trained: a directory or a name on the Hub; `adapter` null trains all weights."""

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    adapter: Adapter | None = None

    @model_validator(mode="after")
    def _can_hold_a_step(self) -> Self:
        if self.dtype == "bfloat16" and self.adapter is None:
            raise ValueError("a step of AdamW is lost in bfloat16 weights; add an `adapter`, or train in float32")
        return self


class Columns(Strict):
    """Where a CSV file or a data set from the Hub keeps what a row needs; `choices.text` looks inside a field.

    `label_keys`: the column with the options' keys, where the label is a key ("A") and not an option's name.
    `thought`: the column with written reasoning, which SFT in reasoned mode learns.
    """

    input: str | None = None
    label: str = "label"
    question: str | None = None
    options: str | None = None
    label_keys: str | None = None
    thought: str | None = None


class Source(Strict):
    """Labelled rows: a JSONL or CSV file, a folder that `datasets` saved, or a data set on the Hub.

    `limit` keeps the rows whose content hash comes first, so that the choice does not depend on the file's order.
    """

    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    columns: Columns = Columns()
    limit: Positive | None = None

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` or `hub`")
        return self


class Data(Strict):
    """What is trained on and evaluated on.

    `validation`: the share of the training rows, chosen by content hash and `split_seed`, kept out for evaluation.
    `folds`: keep out one of so many equal parts, the one numbered `fold`; the rest is trained on, less `validation`.
    `bad_rows`: refuse the data, or drop the rows and count them. A row is bad if it is faulty, too long for the
    context, or stands in an evaluation set too.
    """

    train: Source
    evaluate: dict[str, Source] = {}
    validation: Share = 0.0
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Count = 0
    split_seed: int = 0
    bad_rows: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _has_the_fold(self) -> Self:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"there is no fold {self.fold} of {self.folds or 1}: they are numbered from 0")
        return self

    @model_validator(mode="after")
    def _names_no_set_twice(self) -> Self:
        taken = {TRAIN, CERTIFYING, *self.kept_out} & self.evaluate.keys()
        if taken:
            raise ValueError(f"an evaluation set cannot be called `{min(taken)}`, which is another set's name")
        return self

    @property
    def kept_out(self) -> tuple[str, ...]:
        """Names of the evaluation sets that are kept out of the training rows."""
        there = {OUT_OF_FOLD: self.folds is not None, VALIDATION: self.validation > 0}
        return tuple(name for name, kept in there.items() if kept)


class Rollout(Strict):
    """How completions are drawn (reasoned mode), `group` for each row.

    `free`: the model writes on by itself, and the last answer prefix that a label follows is the decision. `forced`: a
    thought ends at its marker or budget, then the answer prefix is set as the server sets it and the decision drawn.
    """

    kind: Literal["free", "forced"] = "free"
    group: Annotated[int, Field(ge=2)] = 8
    max_tokens: Positive = 512
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0


class Objective(Strict):
    """What is minimised at the decision; see `demur.training.objectives`. The defaults are vanilla GRPO."""

    policy_loss_on_decision: bool = True
    advantage: Literal["sampled", "group_exact", "expected"] = "sampled"
    target: Literal["paper", "others", "gold"] | None = None
    target_decision: Literal["sampled", "argmax"] = "sampled"
    target_clamp: bool = False
    lambda_: Weight = Field(default=0.0, alias="lambda")
    brier: Weight = 0.0
    over: Literal["vocabulary", "labels"] = "vocabulary"

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        if self.lambda_ > 0 and self.target is None:
            raise ValueError("a `lambda` above 0 needs a `target`: paper, others or gold")
        return self


class Grpo(Strict):
    """The policy loss over the completion (reasoned mode)."""

    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    beta: Weight = 0.0
    epsilon: Weight = 0.2
    epsilon_high: Weight = 0.2
    scale_rewards: Literal["group", "batch", "none"] = "group"
    iterations: Positive = 1
    importance: Literal["token", "sequence"] = "token"
    mask_truncated: bool = False


class Optimiser(Strict):
    """AdamW and its schedule. `steps` wins over `epochs`; `prompts` a step over all processes.

    `micro_batch`: rollouts a forward pass and process, or prompts where nothing is rolled out; it changes memory and
    speed, never the gradient.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Count = 0
    weight_decay: Weight = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Weight = 1e-8
    max_grad_norm: Weight = 1.0
    epochs: Annotated[float, Field(gt=0)] = 3.0
    steps: Positive | None = None
    prompts: Positive = 4
    micro_batch: Positive = 8
    gradient_checkpointing: bool = True


class Saves(Strict):
    """A checkpoint every so many optimiser steps, of which the newest are kept; one at the end always.

    `best_by`: the evaluation set by whose NLL the trained model is chosen among the checkpoints; without it, and in
    reasoned mode, it is the last one.
    """

    every: Positive = 50
    keep: Positive = 2
    best_by: str | None = None


class Log(Strict):
    """A line of metrics every so many optimiser steps, and where else they go."""

    every: Positive = 1
    to: list[Literal["tensorboard", "trackio", "wandb"]] = ["tensorboard"]


class Certify(Strict):
    """How `--bundle` certifies the trained model; the options of `demur calibrate`.

    `data`: rows that nothing was trained or chosen on. `searched`: rows on which task or recipe were chosen.
    """

    data: str
    searched: str | None = None
    unlabelled: str | None = None
    alpha: Share = 0.05
    beta: Share = 0.3
    delta: Share = 0.05
    family: Positive = 1
    attempt: Positive | None = None
    valid_days: Positive = 90


class Recipe(Strict):
    """One training run. Paths in it are relative to `folder`, the recipe's own.

    `processes`: how many share it, one a GPU, started by torchrun or `accelerate launch`.

    `sft` learns the gold decision, in reasoned mode with the thought before it. `own_correct` is a light SFT after
    RL: the gold decision, weighted with the probability that the model began with; in reasoned mode thought and
    decision of those of its own rollouts, drawn before the first step, that decided right.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    task: str
    method: Literal["sft", "grpo", "own_correct"]
    mode: Literal["direct", "reasoned"]
    seed: Count = 0
    processes: Positive = 1
    max_length: Positive = 2048
    model: Model
    data: Data
    rollout: Rollout = Rollout()
    objective: Objective = Objective()
    grpo: Grpo = Grpo()
    optimiser: Optimiser = Optimiser()
    saves: Saves = Saves()
    log: Log = Log()
    certify: Certify | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        objective, at_once = self.objective, self.optimiser.micro_batch * self.processes
        if self.rows_a_step % at_once:
            of = f" of {self.rollout.group} rollouts are {self.rows_a_step}" if self.rolls_out else ""
            raise ValueError(
                f"{self.optimiser.prompts} prompts{of} a step, which {self.processes} processes of micro_batch "
                f"{self.optimiser.micro_batch} cannot share evenly"
            )
        drawn = self.rollout
        if self.learns_rollouts and (drawn.kind != "forced" or drawn.top_p < 1 or drawn.top_k > 0):
            raise ValueError(
                "`own_correct` in reasoned mode needs `rollout.kind: forced` with `top_p` 1.0 and `top_k` 0"
            )
        if self.method != "grpo" and (objective.lambda_ or objective.brier):
            raise ValueError(f"`{self.method}` learns gold decisions: a `lambda` or `brier` belongs to `grpo`")
        if self.saves.best_by is not None and self.saves.best_by not in self.evaluated:
            raise ValueError(f"`best_by` names no evaluation set; there is {', '.join(self.evaluated) or 'none'}")
        if self.saves.best_by is not None and self.mode == "reasoned":
            raise ValueError("`best_by` measures right behind the prompt: it cannot choose among reasoned checkpoints")
        minimised = objective.policy_loss_on_decision or objective.lambda_ or objective.brier
        if self.method == "grpo" and not self.rolls_out and not minimised:
            raise ValueError("nothing is minimised: no policy loss on the decision, no `lambda`, no `brier`")
        if self.rolls_out:
            if self.rollout.kind == "forced" and self.grpo.mask_truncated:
                raise ValueError("`mask_truncated` masks every forced rollout, since each is cut at its decision")
            if self.saves.every % self.grpo.iterations:
                raise ValueError(
                    f"`saves.every` must be a multiple of `grpo.iterations`, {self.grpo.iterations}: a checkpoint does "
                    "not hold the rollouts that are to be learned from again"
                )
            if self.objective.advantage != "sampled":
                raise ValueError("`advantage` is `sampled` in reasoned mode: only a decision alone has a closed form")
        return self

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.method == "grpo" and self.mode == "direct":
            idle = [f"grpo.{name}" for name in self.grpo.model_dump(exclude_defaults=True)]
            if self.grpo.scale_rewards == "none":
                idle.remove("grpo.scale_rewards")
            drawn = self.rollout.model_dump(exclude_defaults=True, include={"temperature", "top_p", "top_k"})
            if idle := [*idle, *(f"rollout.{name}" for name in drawn)]:
                raise ValueError(f"nothing is rolled out in direct mode, so {', '.join(idle)} cannot be as given")
        if self.method == "own_correct" and self.objective.over != "vocabulary":
            raise ValueError("`own_correct` learns decisions over the vocabulary: `objective.over` cannot be `labels`")
        return self

    @property
    def rolls_out(self) -> bool:
        """Whether completions are drawn at every step; without, a row is one forward pass."""
        return self.method == "grpo" and self.mode == "reasoned"

    @property
    def learns_rollouts(self) -> bool:
        """Whether completions are drawn once, before the first step, and learned where they decided right."""
        return self.method == "own_correct" and self.mode == "reasoned"

    @property
    def rows_a_step(self) -> int:
        """Rollouts, or prompts where nothing is rolled out, an optimiser step."""
        return self.optimiser.prompts * (self.rollout.group if self.rolls_out else 1)

    @property
    def accumulation(self) -> int:
        """Micro-batches an optimiser step and process."""
        return self.rows_a_step // (self.optimiser.micro_batch * self.processes)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Names of the evaluation sets."""
        return (*self.data.evaluate, *self.data.kept_out)


def resolve(path: str, folder: Path) -> Path:
    """A path of a recipe that lies in `folder`."""
    return Path(path) if Path(path).is_absolute() else folder / path
