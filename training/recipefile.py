"""Recipe files and grids of them, in YAML: every fault with file and line.

A grid is a base and named variants along axes; a cell is one variant of each axis on top of the base:

    base: {...}
    axes:
      model: {4b: {model.path: Qwen/Qwen3-4B}}
      arm: {grpo: {}, calibration: {objective.target: paper, objective.lambda: 0.001}}

Its cells are `4b.grpo` and `4b.calibration`. `{cell}` in the base's name becomes the cell's.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from demur.decision.errors import TaskFault, TaskFileError
from demur.decision.yamlnodes import Faults, compose
from demur.training.recipe import Recipe

_WHAT = "a recipe is a mapping with at least `name`, `task`, `method`, `mode`, `model` and `data`; a grid has `base`"


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """The recipes of a file by cell name; a plain recipe is the one cell "". `folder`: what their paths start from."""

    folder: Path
    cells: Mapping[str, Recipe]


class _Duplicates(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would let the last one win."""


def _mapping(loader: _Duplicates, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"`{key}` is given twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _number(loader: _Duplicates, node: yaml.ScalarNode) -> Any:
    """YAML 1.1 reads 1e-6 as text; people mean the number."""
    value = loader.construct_scalar(node)
    try:
        return float(value) if node.style is None and "e" in value.lower() and value[:1].isdigit() else value
    except ValueError:
        return value


_Duplicates.add_constructor("tag:yaml.org,2002:map", _mapping)
_Duplicates.add_constructor("tag:yaml.org,2002:str", _number)


def load_recipes(path: Path, changes: Sequence[str] = ()) -> RecipeFile:
    """The recipes of a file, each with `changes` ("section.key=value", the value in YAML) on top.

    Raises TaskFileError with every fault.
    """
    faults = Faults(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskFileError([TaskFault(str(path), 1, f"cannot be read: {error.strerror}")]) from None
    node = compose(content, faults, _WHAT)
    cells: dict[str, Recipe] = {}
    if node is not None:
        try:
            value = _Duplicates(content.decode("utf-8-sig")).get_single_data()
            for cell, fields in _cells(value, node, faults):
                for change in changes:
                    _set(fields, *_change(change))
                recipe = _recipe(cell, fields, node, faults)
                if recipe is not None:
                    cells[cell] = recipe
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            faults.add(mark.line + 1 if mark else 1, str(error.problem))
        except ValueError as error:
            faults.add(1, str(error))
    if faults.found:
        raise TaskFileError(faults.found)
    return RecipeFile(path.resolve().parent, cells)


def _cells(value: dict[str, Any], node: yaml.MappingNode, faults: Faults) -> list[tuple[str, dict[str, Any]]]:
    """The fields of every cell; none where the grid itself is faulty."""
    if "base" not in value:
        return [("", value)]
    if unknown := value.keys() - {"base", "axes"}:
        raise ValueError(f"unknown key `{min(unknown)}` in the grid; known are `base` and `axes`")
    axes = value.get("axes") or {}
    if not isinstance(axes, dict) or not all(isinstance(axis, dict) and axis for axis in axes.values()):
        faults.add(_line(node, ["axes"]), "`axes` is a mapping of axes, each a mapping of named variants")
        return []
    if not isinstance(value["base"], dict):
        faults.add(_line(node, ["base"]), "`base` is a mapping, a recipe's")
    for axis, variants in axes.items():
        for name, variant in variants.items():
            if not isinstance(variant or {}, dict) or not all(isinstance(key, str) for key in variant or {}):
                place = _line(node, ["axes", str(axis), str(name)])
                faults.add(place, f"`{name}` is a mapping of what it changes, such as {{objective.target: gold}}")
    if faults.found:
        return []
    cells = []
    for picked in itertools.product(*(axis.items() for axis in axes.values())):
        cell = ".".join(str(name) for name, _ in picked)
        fields = _copy(value["base"])
        for _, variant in picked:
            for key, new in (variant or {}).items():
                _set(fields, key, new)
        fields["name"] = str(fields.get("name", "{cell}")).replace("{cell}", cell)
        cells.append((cell, fields))
    for name, count in Counter(fields["name"] for _, fields in cells).items():
        if count > 1:
            shared = f"{count} cells are called {name!r}, and would share a folder; write {{cell}} into `name`"
            faults.add(_line(node, ["base", "name"]), shared)
    return cells


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _change(change: str) -> tuple[str, Any]:
    key, found, value = change.partition("=")
    if not found or not key:
        raise ValueError(f"--set wants key=value, not {change!r}")
    return key, _Duplicates(value).get_single_data()


def _set(fields: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = fields.get(section)
        fields[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        fields = inner
    fields[last] = _copy(value)


def _recipe(cell: str, fields: dict[str, Any], node: yaml.MappingNode, faults: Faults) -> Recipe | None:
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        where = f" (cell {cell})" if cell else ""
        for fault in error.errors():
            place = [str(part) for part in fault["loc"]]
            message = (
                "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
            )
            faults.add(_line(node, place if not cell else ["base", *place]), f"`{'.'.join(place)}`: {message}{where}")
        return None


def _line(node: yaml.Node, place: Sequence[str]) -> int:
    """The line of the deepest key of `place` that the file has."""
    line = node.start_mark.line + 1
    for part in place:
        found = next((pair for pair in node.value if pair[0].value == part), None) if _is_map(node) else None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _is_map(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)
