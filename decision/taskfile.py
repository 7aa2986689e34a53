"""Task files: one YAML file a task, read strictly.

    name: moderation
    question: Is this text safe or unsafe?
    options:
      - safe
      - name: unsafe
        description: sexual content, hate, harassment, violence or self-harm
    readout: text                     # or {kind: text, length: prior}
    policy: {min_label_mass: 0.01}

Everything that `Task` has may be said; unknown keys are faults. All faults of a file, and of all files of a directory,
are reported together, each with file, line and remedy.
"""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from demur.decision.canonical import canonical_bytes
from demur.decision.errors import LabelError, TaskFault, TaskFileError, UnusableModelError
from demur.decision.policy import MAX_PRICE, policy_faults
from demur.decision.prompt import PromptBuilder
from demur.decision.question import MAX_OPTIONS, MIN_OPTIONS, Option, Question
from demur.decision.task import (
    AuditSpec,
    DecisionSpec,
    LengthHandling,
    Mode,
    PolicyKind,
    PolicySpec,
    PromptLayout,
    ReadoutKind,
    ReadoutSpec,
    Scale,
    Task,
    ThoughtSpec,
    Truncation,
)
from demur.decision.wording import name_key
from demur.decision.yamlnodes import Faults, Section, choice, compose, number, string

#: Raised when a default of the schema changes its meaning, so that hashes tell the tasks apart.
SCHEMA = 1

NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
#: Names that mean something else in metrics and URLs.
RESERVED_NAMES = frozenset({"adhoc"})

SUFFIXES = (".yaml", ".yml")

_KEYS = (
    *("name", "description", "question", "options", "readout", "mode", "thought", "layout", "truncation"),
    *("max_input_tokens", "policy", "examples", "explain", "log_inputs", "slice_by"),
    *("audit", "show_audit", "double_label"),
)


def load_task(path: Path) -> Task:
    """The task of one file. Raises TaskFileError with all its faults; a file that cannot be opened is one."""
    task, faults = _load(path)
    if task is None:
        raise TaskFileError(faults)
    return task


def load_tasks(directory: Path) -> dict[str, Task]:
    """The tasks of all *.yaml and *.yml files of a directory by name, sorted; all of them or TaskFileError."""
    if not directory.is_dir():
        raise TaskFileError([TaskFault(str(directory), 1, "not a directory; name one that holds task files")])
    tasks: dict[str, Task] = {}
    files: dict[str, Path] = {}
    faults: list[TaskFault] = []
    for path in sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES):
        task, found = _load(path)
        faults += found
        if task is None:
            continue
        first = files.setdefault(task.name, path)
        if first != path:
            faults.append(TaskFault(str(path), 1, f"`{task.name}` is the name of {first.name} too; rename one of them"))
        tasks[task.name] = task
    if faults:
        raise TaskFileError(faults)
    return dict(sorted(tasks.items()))


def parse_task(data: bytes, file: str) -> Task:
    """The task that `data` says; `file` is named in faults. Raises TaskFileError."""
    task, faults = _parse(data, file)
    if task is None:
        raise TaskFileError(faults)
    return task


def check_task(file: Path, prompts: PromptBuilder) -> list[TaskFault]:
    """What is wrong with a task on one model: labels that collide, a template that refuses it, too few letters.

    Raises TaskFileError for what is wrong on every model.
    """
    task = load_task(file)
    try:
        plan = prompts.compile(task.spec).plan
    except LabelError as error:
        return [label_fault(file, error)]
    except UnusableModelError as error:
        return [TaskFault(str(file), 1, str(error))]
    return [TaskFault(str(file), 1, plan.note)] if plan.note else []


def label_fault(file: Path, error: LabelError) -> TaskFault:
    """The fault of labels that collide, at the last of the options concerned; OSError where the file is gone."""
    found = Faults(str(file))
    node = compose(file.read_bytes(), found)
    lines = (
        [] if node is None else [item.start_mark.line + 1 for item in Section(node, "", _KEYS, found).items("options")]
    )
    index = max(error.options, default=0)
    return TaskFault(str(file), lines[index] if index < len(lines) else 1, str(error))


def content_hash(task: Task) -> str:
    """SHA-256 (hex) of all that a task says. Values that are the defaults count as not said."""
    said = {key: value for key, value in _said(task).items() if key != "content_hash"}
    return hashlib.sha256(canonical_bytes({"schema": SCHEMA, "task": said})).hexdigest()


def _said(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: (getattr(value, field.name), field) for field in dataclasses.fields(value)}
        return {name: _said(item) for name, (item, field) in fields.items() if item != _default(field)}
    if isinstance(value, tuple):
        return [_said(item) for item in value]
    return value


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _load(path: Path) -> tuple[Task | None, list[TaskFault]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        return None, [TaskFault(str(path), 1, f"cannot be read: {error.strerror}")]
    return _parse(data, str(path))


def _parse(data: bytes, file: str) -> tuple[Task | None, list[TaskFault]]:
    faults = Faults(file)
    node = compose(data, faults)
    task = _task(node, faults) if node is not None else None
    return (None if faults.found else task), faults.found


def _task(node: yaml.Node, faults: Faults) -> Task:
    top = Section(node, "the task", _KEYS, faults)
    options = _options(top, faults)
    spec = DecisionSpec(
        question=Question(top.text("question", required=True) or "", options),
        readout=_readout(top, faults),
        mode=top.choice("mode", Mode, Mode.DIRECT),
        thought=_thought(top, faults),
        layout=_layout(top, faults),
        truncation=top.choice("truncation", Truncation, Truncation.REFUSE),
        max_input_tokens=top.integer("max_input_tokens", 0, 1, 10_000_000) or None,
    )
    examples = [string(item, "an example", faults, verbatim=True) for item in top.items("examples")]
    task = Task(
        name=_name(top, faults),
        spec=spec,
        policy=_policy(top, len(options), faults),
        description=top.text("description"),
        examples=tuple(example for example in examples if example is not None),
        explain=top.boolean("explain", default=True),
        log_inputs=top.boolean("log_inputs", default=False),
        audit=_audit(top, faults),
        show_audit=top.boolean("show_audit", default=False),
        double_label=top.number("double_label", 0, 1) or 0.0,
        slice_by=top.text("slice_by"),
    )
    return dataclasses.replace(task, content_hash=content_hash(task))


def _name(top: Section, faults: Faults) -> str:
    name = top.text("name", required=True)
    node = top.node("name")
    if name is not None and node is not None:
        if not NAME.fullmatch(name):
            faults.add(
                node,
                "`name` is used in URLs: 1 to 64 lower-case letters, digits, `-`, `_` and `.`, with a letter or digit "
                "first and last",
            )
        elif name in RESERVED_NAMES:
            faults.add(node, f"`{name}` is reserved for questions without a task; choose another name")
    return name or ""


def _options(top: Section, faults: Faults) -> tuple[Option, ...]:
    nodes = top.items("options", required=True)
    place = top.node("options")
    if isinstance(place, yaml.SequenceNode) and not MIN_OPTIONS <= len(nodes) <= MAX_OPTIONS:
        faults.add(place, f"there are {len(nodes)} options; a question has {MIN_OPTIONS} to {MAX_OPTIONS}")
    options: list[Option] = []
    first_lines: dict[str, int] = {}
    for node in nodes:
        option = _option(node, faults)
        if option is None:
            continue
        key = name_key(option.name)
        if key in first_lines:
            first = first_lines[key]
            faults.add(node, f"option {option.name!r} is the same as the one on line {first}; rename or remove one")
        first_lines.setdefault(key, node.start_mark.line + 1)
        options.append(option)
    return tuple(options)


def _option(node: yaml.Node, faults: Faults) -> Option | None:
    if isinstance(node, yaml.MappingNode):
        section = Section(node, "an option", ("name", "description"), faults)
        name_node = section.node("name", required=True)
        name = string(name_node, "an option's `name`", faults, verbatim=True) if name_node is not None else None
        description = section.text("description")
        return Option(name, description) if name is not None else None
    name = string(node, "an option", faults, verbatim=True)
    return Option(name) if name is not None else None


def _readout(top: Section, faults: Faults) -> ReadoutSpec:
    node = top.node("readout")
    if node is None:
        return ReadoutSpec()
    if isinstance(node, yaml.ScalarNode):
        return ReadoutSpec(choice(node, "`readout`", ReadoutKind, faults) or ReadoutKind.LETTER)
    section = Section(node, "`readout`", ("kind", "length"), faults)
    kind = section.choice("kind", ReadoutKind, ReadoutKind.LETTER)
    length = section.choice("length", LengthHandling, LengthHandling.SUM)
    if kind is ReadoutKind.LETTER and length is LengthHandling.MEAN:
        faults.add(section.node("length") or node, "letters are one token each; `length: mean` is for `kind: text`")
    return ReadoutSpec(kind, length)


def _thought(top: Section, faults: Faults) -> ThoughtSpec:
    node = top.node("thought")
    default = ThoughtSpec()
    if node is None:
        return default
    section = Section(node, "`thought`", [field.name for field in dataclasses.fields(ThoughtSpec)], faults)
    temperature, top_p = section.number("temperature", 0, 10), section.number("top_p", 1e-6, 1)
    return ThoughtSpec(
        max_tokens=section.integer("max_tokens", default.max_tokens, 1, 1_000_000),
        max_ms=section.integer("max_ms", default.max_ms, 1, 3_600_000),
        temperature=default.temperature if temperature is None else temperature,
        top_p=default.top_p if top_p is None else top_p,
        top_k=section.integer("top_k", default.top_k, 0, 1_000_000),
        seed=section.integer("seed", default.seed, 0, 2**63 - 1),
        markers=section.boolean("markers", default=False) if section.node("markers") is not None else None,
    )


def _layout(top: Section, faults: Faults) -> PromptLayout:
    node = top.node("layout")
    if node is None:
        return PromptLayout()
    section = Section(node, "`layout`", [field.name for field in dataclasses.fields(PromptLayout)], faults)
    return PromptLayout(
        system=section.text("system"),
        input_title=section.text("input_title") or PromptLayout().input_title,
        instruction=section.text("instruction", blank=True),
        answer_prefix=section.text("answer_prefix", blank=True),
    )


def _audit(top: Section, faults: Faults) -> AuditSpec:
    node = top.node("audit")
    if node is None:
        return AuditSpec()
    names = [field.name for field in dataclasses.fields(AuditSpec)]
    section = Section(node, "`audit`", names, faults)
    given = {name: section.number(name, 0, 1) for name in names}
    return AuditSpec(**{name: rate for name, rate in given.items() if rate is not None})


def _policy(top: Section, options: int, faults: Faults) -> PolicySpec:
    node = top.node("policy")
    if node is None:
        return PolicySpec()
    section = Section(node, "`policy`", [field.name for field in dataclasses.fields(PolicySpec)], faults)
    found = len(faults.found)
    policy = PolicySpec(
        allow_uncalibrated=section.boolean("allow_uncalibrated", default=False),
        trust_at=section.number("trust_at", 0, 1),
        defer_below=section.number("defer_below", 0, 1),
        min_label_mass=section.number("min_label_mass", 0, 1),
        kind=section.choice("kind", PolicyKind, PolicyKind.FIXED) if section.node("kind") is not None else None,
        scale=section.choice("scale", Scale, Scale.P_CORRECT),
        cost=_cost(section, faults),
        review_price=section.number("review_price", 0, MAX_PRICE),
        defer_price=section.number("defer_price", 0, MAX_PRICE),
        to_people=section.number("to_people", 0, 1),
    )
    if len(faults.found) == found:  # a member with a fault of its own reads as missing
        for member, message in policy_faults(policy, options):
            faults.add(section.node(member) or node, message)
    return policy


def _cost(section: Section, faults: Faults) -> tuple[tuple[float, ...], ...] | None:
    rows: list[tuple[float, ...]] = []
    for i, row in enumerate(section.items("cost")):
        if not isinstance(row, yaml.SequenceNode):
            faults.add(row, "a row of `cost` must be a list of numbers, one an option")
            continue
        numbers = [number(item, f"`cost[{i}][{j}]`", 0, MAX_PRICE, faults) for j, item in enumerate(row.value)]
        rows.append(tuple(value for value in numbers if value is not None))
    return tuple(rows) if section.node("cost") is not None else None
