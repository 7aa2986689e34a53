"""Labelled rows, read strictly: JSON Lines, one labelled decision a line.

    {"input": "wake me at six", "label": "alarm"}
    {"id": "17", "input": {"subject": "..."}, "label": "no", "group": "customer 8"}

`question` and `options` stand in a row only where they differ from row to row, `slice` where a task has slices and the
input does not name its own; `thought` is written reasoning for training to learn; `meta` may hold anything. All faults
of a file are reported together. Rows with the same content are kept once (in each slice).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from demur.decision.canonical import canonical_text
from demur.decision.errors import DataFileError
from demur.decision.question import MAX_OPTIONS, MIN_OPTIONS, Option, Question
from demur.decision.rowhash import row_hash
from demur.decision.slices import slice_of

_KEYS = frozenset({"id", "input", "label", "question", "options", "group", "slice", "thought", "meta"})
_MOST_FAULTS = 20


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One row: `text` as the model reads it, `label` the index of an option (None in unlabelled data).

    `own` is the row's own question, None where it is the task's. `thought` is the reasoning that somebody wrote and
    `meta` is kept as it stands, unchecked; neither is part of the row's hash. `unit` is what counts as one piece
    of evidence: the group, or the row itself. `slice` is given where the task has slices.
    """

    line: int
    text: str
    label: int | None
    hash: str
    id: str | None = None
    group: str | None = None
    own: Question | None = None
    slice: str | None = None
    thought: str | None = None
    meta: object = field(default=None, compare=False, repr=False)

    @property
    def unit(self) -> str:
        """Hash of the group, or of the row where it has none."""
        return self.hash if self.group is None else hashlib.sha256(f"group {self.group}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class LabelledData:
    """The rows of a file, every content once. `sha256` is of the whole file, `read` counts its rows.

    `dropped`: faults of the rows that were left out, where the caller asked for that.
    """

    name: str
    sha256: str
    read: int
    duplicates: int
    rows: tuple[LabelledRow, ...] = field(repr=False)
    dropped: tuple[str, ...] = ()

    @property
    def options_vary(self) -> bool:
        """Whether any row brings its own question."""
        return any(row.own is not None for row in self.rows)


class _Fault(ValueError):
    """What is wrong with one row."""


def read_labelled(
    path: Path, question: Question, *, labelled: bool = True, slice_by: str | None = None
) -> LabelledData:
    """The rows of a file about `question`. Raises DataFileError with every fault, each with its line and value.

    `labelled=False` reads rows whose labels do not matter: they may be missing, and are not looked at.
    With `slice_by`, the member of the input that names its slice, every row must have a slice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_labelled(content, str(path), question, labelled=labelled, slice_by=slice_by)


def parse_labelled(
    content: bytes,
    name: str,
    question: Question,
    *,
    labelled: bool = True,
    drop: bool = False,
    slice_by: str | None = None,
) -> LabelledData:
    """`read_labelled` of content that was read already; `name` is named in faults.

    `drop` leaves faulty rows out instead of raising, as long as one is left.
    """
    rows: list[LabelledRow] = []
    faults: list[str] = []
    for line, text in _lines(content):
        try:
            rows.append(_row(line, text, question, labelled, slice_by))
        except _Fault as fault:
            faults.append(f"{name}:{line}: {fault}")
    kept: dict[tuple[str, str | None], LabelledRow] = {}
    for row in rows:
        first = kept.setdefault((row.hash, row.slice), row)
        if first.label != row.label:
            names = [(row.own or question).names[label] for label in (first.label, row.label) if label is not None]
            faults.append(
                f"{name}:{row.line}: label {names[1]!r}, but line {first.line} has the same input labelled "
                f"{names[0]!r}; keep one of them"
            )
    if not rows and not faults:
        faults.append(f"{name}:1: no rows; give one JSON object a line")
    if faults and not (drop and kept):
        raise data_faults(faults)
    digest = hashlib.sha256(content).hexdigest()
    return LabelledData(name, digest, len(rows), len(rows) - len(kept), tuple(kept.values()), tuple(faults))


def data_faults(faults: Sequence[str]) -> DataFileError:
    """One error for many faults, each with file and line; the first twenty are spelled out."""
    more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
    return DataFileError("\n".join([*faults[:_MOST_FAULTS], *more]))


def beside(data: LabelledData, unlabelled: LabelledData | None) -> tuple[LabelledData | None, dict[str, int]]:
    """The unlabelled rows that are not among the labelled ones, and how many rows were left out, by why.

    A row that certifies must not choose where to test.
    """
    if unlabelled is None:
        return None, {"duplicates": data.duplicates}
    known = {row.hash for row in data.rows}
    others = tuple(row for row in unlabelled.rows if row.hash not in known)
    left_out = {"duplicates": data.duplicates, "unlabelled_too": len(unlabelled.rows) - len(others)}
    return replace(unlabelled, rows=others), left_out


def require_fixed_question(data: LabelledData) -> None:
    """Raises DataFileError where rows bring questions of their own: a bundle is pinned to one question."""
    for row in data.rows:
        if row.own is not None:
            raise DataFileError(
                f"{data.name}:{row.line}: has a question or options of its own, and a bundle is pinned to the task's; "
                "leave them out, or use demur evaluate"
            )


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _row(line: int, text: bytes, question: Question, labelled: bool, slice_by: str | None) -> LabelledRow:
    value = _value(text)
    if unknown := sorted(value.keys() - _KEYS):
        raise _Fault(f"unknown field {unknown[0]!r}; a row has {', '.join(sorted(_KEYS))}")
    if value.get("input") is None and value.get("question") is None:
        raise _Fault("`input` is missing")
    own = _own_question(value, question)
    asked = own or question
    # A question of its own may be all there is to decide on.
    try:
        read = canonical_text("" if value.get("input") is None else value["input"])
        content = row_hash(read, own)
    except RecursionError:
        raise _Fault("`input` is nested too deeply") from None
    except UnicodeEncodeError:
        raise _Fault("a text holds half of a surrogate pair, which is no character") from None
    group = value.get("group")
    if group is not None and not isinstance(group, str | int):
        raise _Fault(f"`group` must be a name or a number, not {_shown(group)}")
    return LabelledRow(
        line=line,
        text=read,
        label=_label(value, asked) if labelled else None,
        hash=content,
        id=None if value.get("id") is None else str(value["id"]),
        group=None if group is None else str(group),
        own=own,
        slice=_slice(value, slice_by),
        thought=_thought(value),
        meta=value.get("meta"),
    )


def _value(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise _Fault("nested too deeply") from None
    except ValueError as error:
        raise error if isinstance(error, _Fault) else _Fault(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _Fault(f"a row is a JSON object, not {_shown(value)}")
    return value


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        names = [name for name, _ in members]
        raise _Fault(f"{_shown(next(name for name in names if names.count(name) > 1))} is given twice")
    return value


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise _Fault(f"{text[:40]} is too large a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _Fault(f"{name} is not a number that JSON knows")


def _label(value: dict[str, Any], asked: Question) -> int:
    if value.get("label") is None:
        raise _Fault("`label` is missing")
    label = value["label"]
    if label not in asked.names:
        raise _Fault(f"label {_shown(label)} is not an option; the options are {_listed(asked.names)}")
    return asked.names.index(label)


def _slice(value: dict[str, Any], field: str | None) -> str | None:
    given = value.get("slice")
    if given is not None and not isinstance(given, str):
        raise _Fault(f"`slice` must be a name, not {_shown(given)}")
    found = slice_of(value.get("input"), field, given)
    if field is not None and found is None:
        raise _Fault(
            f"its slice is unknown: give `{field}` in the input, or `slice` beside it, and not two that differ"
        )
    return found


def _thought(value: dict[str, Any]) -> str | None:
    given = value.get("thought")
    if given is not None and (not isinstance(given, str) or not given.strip()):
        raise _Fault(f"`thought` must be text, not {_shown(given)}")
    return given


def _own_question(value: dict[str, Any], question: Question) -> Question | None:
    if value.get("question") is None and value.get("options") is None:
        return None
    text, options = value.get("question") or question.text, value.get("options")
    if not isinstance(text, str):
        raise _Fault(f"`question` must be text, not {_shown(text)}")
    if options is None:
        return None if text == question.text else Question(text, question.options)
    if not isinstance(options, list) or not all(isinstance(name, str) and name.strip() for name in options):
        raise _Fault("`options` must be a list of names")
    if not MIN_OPTIONS <= len(options) <= MAX_OPTIONS or len(set(options)) < len(options):
        raise _Fault(f"`options` must be {MIN_OPTIONS} to {MAX_OPTIONS} different names")
    if text == question.text and tuple(options) == question.names:
        return None  # the task's, spelled out
    return Question(text, tuple(Option(name) for name in options))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
