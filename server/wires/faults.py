"""Lists everything that is wrong with a body."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from demur.decision.slices import MAX_SLICE
from demur.decision.wording import is_blank
from demur.server.errors import Fault, Invalid


class Strict(BaseModel):
    """Base of request models: nothing is converted, nothing unknown is accepted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def _not_blank(text: str) -> str:
    if is_blank(text):
        raise ValueError("must not be blank")
    return text


#: Text with something to see in it.
Text = Annotated[str, AfterValidator(_not_blank), Field(json_schema_extra={"pattern": r"\S"})]


#: The name of a slice.
SliceName = Annotated[
    str, Field(max_length=MAX_SLICE, json_schema_extra={"pattern": r"\S"}), AfterValidator(_not_blank)
]

#: Faults listed at most, and fields that an object may have at most: answers to absurd bodies stay small.
MAX_FAULTS = 100
MAX_FIELDS = 64


def crowded(path: tuple[str | int, ...], value: Any) -> Iterator[Fault]:
    """A fault where an object of the schema has absurdly many fields, which is not worth validating further."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        yield Fault(path, f"{len(value)} fields, more than {MAX_FIELDS}", "too_long")


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """The faults that a model's validation found, with a hint where a field is misspelt."""
    found = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown field" + _hint(item["loc"], model)
        found.append(Fault(item["loc"], message, item["type"]))
    return found


def require_none(faults: Iterable[Fault]) -> None:
    """Raises `Invalid` with the faults (`MAX_FAULTS` at most) by path, unless there are none."""
    found = sorted(
        dict.fromkeys(map(_clipped, faults)), key=lambda fault: [(isinstance(p, str), p) for p in fault.path]
    )
    if found:
        first = found[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first.path).lstrip(".")
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Invalid(f"{where or 'body'}: {first.message}{more}", faults=tuple(found[:MAX_FAULTS]))


def _clipped(fault: Fault) -> Fault:
    if any(isinstance(part, str) and len(part) > 200 for part in fault.path):
        path = tuple(f"{part[:200]}…" if isinstance(part, str) and len(part) > 200 else part for part in fault.path)
        return replace(fault, path=path)
    return fault


def _hint(path: tuple[str | int, ...], model: type[BaseModel]) -> str:
    """The known field that an unknown one resembles, if any."""
    known: Any = model
    for part in path[:-1]:
        if isinstance(part, str):
            known = _model_within(known.model_fields[part].annotation)
    near = difflib.get_close_matches(str(path[-1])[:MAX_FIELDS], list(known.model_fields), n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known.model_fields)}"


def _model_within(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return (
        next(found for arg in annotation.__args__ if (found := _model_within(arg)) is not None)
        if hasattr(annotation, "__args__")
        else None
    )
