"""Fitted models as JSON: frozen dataclasses of numbers and arrays, written exactly and read back strictly."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from demur.calibration.arrays import FloatArray
from demur.calibration.errors import InvalidCalibrator

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SCHEMA = 1
T = TypeVar("T")


def no_numbers() -> FloatArray:
    """Default of an array that `fit` fills."""
    return np.zeros(0)


def dump(model: "DataclassInstance") -> str:
    """Return one JSON object; floats keep every bit."""
    document: dict[str, Any] = {"schema": _SCHEMA, "kind": getattr(model, "kind")}  # noqa: B009
    for each in fields(model):
        value = getattr(model, each.name)
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        document[each.name] = value.tolist() if isinstance(value, np.ndarray) else value
    return json.dumps(document, allow_nan=False, indent=1)


def load(text: str, kinds: Mapping[str, type[T]], summaries: Mapping[str, type]) -> T:
    """Restore what `dump` wrote.

    Args:
        text: the JSON object.
        kinds: classes by their `kind`.
        summaries: classes of the fields that are dataclasses themselves, by field name.

    Raises:
        InvalidCalibrator: anything that `dump` would not have written; which field.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidCalibrator(f"not JSON: {error}") from None
    if not isinstance(document, dict) or document.pop("schema", None) != _SCHEMA:
        raise InvalidCalibrator(f"not a calibrator of schema {_SCHEMA}")
    kind = document.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise InvalidCalibrator(f"unknown kind {kind!r}; known are {', '.join(sorted(kinds))}")
    known = {each.name: each.default for each in fields(kinds[kind])}  # type: ignore[arg-type]
    if set(document) != set(known):
        raise InvalidCalibrator(f"{kind}: fields {sorted(set(document) ^ set(known))} are missing or unknown")
    try:
        values = {
            name: _summary(summaries[name], value) if name in summaries else _number(name, value, known[name])
            for name, value in document.items()
        }
        return kinds[kind](**values)
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidCalibrator(f"{kind}: {error}") from None


def _summary(kind: type, value: Any) -> Any:
    if value is None:
        return None
    return kind(**{name: tuple(item) if isinstance(item, list) else item for name, item in value.items()})


def _number(name: str, value: Any, default: Any) -> Any:
    """A number where the field's default is one, else an array."""
    if default is not MISSING:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise ValueError(f"{name} must be a number, not {value!r}")
        return type(default)(value)
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of numbers")
    array = np.array(value, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    array.flags.writeable = False
    return array
