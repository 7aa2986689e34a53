"""YAML with line numbers, for files that people write: typed reading that collects faults instead of stopping."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import yaml

from demur.decision.errors import TaskFault
from demur.decision.wording import is_blank

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 8

_INTEGER = re.compile(r"[-+]?[0-9]+")
_NULL = "tag:yaml.org,2002:null"
_STR = "tag:yaml.org,2002:str"

E = TypeVar("E", bound=StrEnum)


@dataclass(slots=True)
class Faults:
    """The faults found in one file so far."""

    file: str
    found: list[TaskFault] = field(default_factory=list)

    def add(self, place: yaml.Node | int, message: str) -> None:
        """Notes a fault at a node, or at a line that counts from 1."""
        line = place if isinstance(place, int) else place.start_mark.line + 1
        fault = TaskFault(self.file, line, message)
        if fault not in self.found:
            self.found.append(fault)


class _Refused(Exception):
    """A construct that is valid YAML and not accepted: its line and what to do."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses what lets a small file become a large one."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self.depth += 1
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(line, "aliases (*name) are not supported; write the value out")
        if self.depth > MAX_DEPTH:
            raise _Refused(line, f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def compose(
    data: bytes, faults: Faults, what: str = "a task is a mapping, with at least `name`, `question` and `options`"
) -> yaml.MappingNode | None:
    """The file's top mapping, or None after noting what is wrong with it; `what` says what it should have been."""
    if len(data) > MAX_FILE_BYTES:
        faults.add(1, f"the file has {len(data)} bytes; at most {MAX_FILE_BYTES} are read")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        faults.add(line, f"not UTF-8 at byte {error.start} of the file; save it as UTF-8")
        return None
    try:
        node = _Loader(text).get_single_node()
    except _Refused as error:
        faults.add(error.line, str(error))
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        faults.add(mark.line + 1 if mark else 1, f"not readable as YAML: {error.problem or error.context}")
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        faults.add(line, f"character U+{int(error.character):04X} is not allowed in YAML; remove or escape it")
        return None
    if not isinstance(node, yaml.MappingNode):
        faults.add(node or 1, what)
        return None
    return node


class Section:
    """A mapping with known keys. Every reader returns its default for a missing key and after noting a fault."""

    def __init__(self, node: yaml.Node, where: str, keys: Sequence[str], faults: Faults) -> None:
        self.where = where
        self.line = node.start_mark.line + 1
        self._faults = faults
        self._values: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            faults.add(node, f"{where} must be a mapping of {_names(keys)}")
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name not in keys:
                close = difflib.get_close_matches(name, keys, n=1)
                hint = f"did you mean `{close[0]}`?" if close else f"known are {_names(keys)}"
                faults.add(key, f"unknown key `{name}` in {where}; {hint}")
            elif name in seen:
                faults.add(key, f"`{name}` is given twice in {where}, first on line {seen[name]}; remove one")
            else:
                seen[name] = key.start_mark.line + 1
                self._values[name] = value

    def node(self, key: str, *, required: bool = False) -> yaml.Node | None:
        """The value's node. An empty value is a fault, and so is a missing key that is required."""
        node = self._values.get(key)
        if node is None:
            if required:
                self._faults.add(self.line, f"{self.where} has no `{key}`; add it")
            return None
        if node.tag == _NULL:
            self._faults.add(node, f"`{key}` is empty; give it a value or remove the key")
            return None
        return node

    def text(self, key: str, *, required: bool = False, blank: bool = False) -> str | None:
        """A string; `blank`: an empty one is allowed."""
        node = self.node(key, required=required)
        return None if node is None else string(node, f"`{key}`", self._faults, blank=blank)

    def boolean(self, key: str, default: bool) -> bool:
        """`true` or `false`; YAML's other spellings of them are refused."""
        node = self.node(key)
        if node is None:
            return default
        if _plain(node) not in {"true", "false"}:
            self._faults.add(node, f"`{key}` must be true or false")
            return default
        return bool(node.value == "true")

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """An integer from `low` to `high`."""
        node = self.node(key)
        if node is None:
            return default
        value = _plain(node)
        if value is None or not _INTEGER.fullmatch(value) or len(value) > 20 or not low <= int(value) <= high:
            self._faults.add(node, f"`{key}` must be an integer from {low} to {high}")
            return default
        return int(value)

    def number(self, key: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`, None where the key is missing."""
        node = self.node(key)
        if node is None:
            return None
        return number(node, f"`{key}`", low, high, self._faults)

    def choice(self, key: str, kind: type[E], default: E) -> E:
        """One of an enumeration's values."""
        node = self.node(key)
        if node is None:
            return default
        return choice(node, f"`{key}`", kind, self._faults) or default

    def items(self, key: str, *, required: bool = False) -> list[yaml.Node]:
        """The nodes of a list."""
        node = self.node(key, required=required)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._faults.add(node, f"`{key}` must be a list; start each item on a line of its own with `- `")
            return []
        return list(node.value)


def string(node: yaml.Node, what: str, faults: Faults, *, blank: bool = False, verbatim: bool = False) -> str | None:
    """A scalar as text. `verbatim`: `yes`, `no` or `1` without quotes are taken as they are written."""
    if not isinstance(node, yaml.ScalarNode):
        faults.add(node, f"{what} must be text, not a list or a mapping; quote it if it contains `: ` or `#`")
        return None
    if node.tag != _STR and (node.tag == _NULL or not verbatim):
        faults.add(node, f'{what} must be text; write it in quotes: "{node.value}"')
        return None
    value: str = node.value
    if any("\ud800" <= char <= "\udfff" for char in value):
        faults.add(node, f"{what} holds half a surrogate pair; write the character itself")
        return None
    if not blank and is_blank(value):
        faults.add(node, f"{what} is blank; give it text")
        return None
    return value


def number(node: yaml.Node, what: str, low: float, high: float, faults: Faults) -> float | None:
    """A number from `low` to `high`."""
    try:
        value = float(_plain(node) or "")
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        faults.add(node, f"{what} must be a number from {low:g} to {high:g}")
        return None
    return value


def choice(node: yaml.Node, what: str, kind: type[E], faults: Faults) -> E | None:
    """A member of an enumeration by its value."""
    value = node.value if isinstance(node, yaml.ScalarNode) else None
    for member in kind:
        if member.value == value:
            return member
    close = difflib.get_close_matches(str(value), [member.value for member in kind], n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    faults.add(node, f"{what} must be {' or '.join(member.value for member in kind)}{hint}")
    return None


def _plain(node: yaml.Node) -> str | None:
    """The text of a scalar without quotes, None for anything else."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) and node.style is None else None


def _names(keys: Sequence[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
