"""Slices: the part of a task's traffic that an input belongs to, known before it is decided."""

from demur.decision.canonical import Json, canonical_text

#: Characters of a slice's name. It is kept with every decision, and part of metrics.
MAX_SLICE = 256


def slice_of(value: Json, field: str | None, given: str | None = None) -> str | None:
    """The slice of an input: its member `field`, or what was said beside an input that does not hold it.

    None, an unknown slice, where neither says one or they contradict each other, where it is longer than a name of one
    may be, and where a task has no slices.
    """
    if field is None:
        return None
    said = value.get(field) if isinstance(value, dict) else None
    if said is None:
        return given
    if not isinstance(said, str | int | float):  # a truth value is an integer too
        return None
    name = canonical_text(said)
    return name if given in (None, name) and len(name) <= MAX_SLICE else None
