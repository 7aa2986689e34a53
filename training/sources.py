"""Labelled rows from JSONL, CSV and Hugging Face data sets, all read by the one strict reader of the kernel.

Whatever a row comes from, faults name where it stands: line of the file, or number of the row from 1.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from demur.decision.errors import DataFileError
from demur.decision.labelled import LabelledData, parse_labelled
from demur.decision.question import Question
from demur.training.recipe import Columns, Source, resolve


def read_source(source: Source, folder: Path, question: Question, *, drop: bool) -> LabelledData:
    """The rows of a source. Raises DataFileError with every fault, or drops faulty rows and says which."""
    name, content = _content(source, folder)
    return parse_labelled(content, name, question, drop=drop)


def _content(source: Source, folder: Path) -> tuple[str, bytes]:
    if source.hub is not None:
        from datasets import load_dataset

        rows = load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
        return source.hub, _as_lines(enumerate(rows, 1), source.columns, source.hub)
    path = resolve(source.path or "", folder)
    name = str(source.path)
    if path.is_dir():
        from datasets import DatasetDict, load_from_disk

        loaded = load_from_disk(str(path))
        rows = loaded[source.split] if isinstance(loaded, DatasetDict) else loaded
        return name, _as_lines(enumerate(rows, 1), source.columns, name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFileError(f"{name}: cannot be read: {error.strerror}") from None
    if path.suffix.lower() != ".csv":
        return name, content
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines, before = [], reader.line_num
        for row in reader:
            lines.append((max(before, 1) + 1, row))
            before = reader.line_num
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataFileError(f"{name}: not CSV in UTF-8: {error}") from None
    return name, _as_lines(lines, source.columns, name)


def _as_lines(rows: Iterable[tuple[int, Mapping[str, Any]]], columns: Columns, name: str) -> bytes:
    """The rows as JSON Lines, each on the line that it came from."""
    lines: list[bytes] = []
    for number, row in rows:
        try:
            value = _row(row, columns)
        except KeyError as error:
            raise DataFileError(f"{name}:{number}: no column {error.args[0]!r}; name it under `columns`") from None
        lines += [b""] * (number - 1 - len(lines))
        lines.append(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return b"\n".join(lines)


def _row(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key in ("input", "question", "options", "label", "thought"):
        column = getattr(columns, key)
        if key == "input" and column is None and columns.question is None:
            column = "input"
        if column is not None:
            value[key] = _field(row, column)
    if columns.label_keys is not None:
        keys = list(_field(row, columns.label_keys))
        if value["label"] in keys and value.get("options"):
            value["label"] = value["options"][keys.index(value["label"])]
    return value


def _field(row: Any, column: str) -> Any:
    for part in column.split("."):
        if not isinstance(row, Mapping) or part not in row:
            raise KeyError(column)
        row = row[part]
    return row
