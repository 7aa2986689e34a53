"""JSON inputs as text: the same value is always the same text, so it reads, caches and hashes alike."""

import json
from typing import TypeAlias

#: Any value that JSON can say.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

#: Above this a double no longer tells neighbouring integers apart, so a float is no integer in disguise.
_EXACT = 2**53


def canonical_text(value: Json) -> str:
    """The text a model reads for `value`.

    A string is its own text, unchanged. Anything else is JSON on one line: object keys sorted by code point, non-ASCII
    characters as they are, integral floats as integers (1.0 and 1 are the same JSON number).
    Raises ValueError for NaN and infinities, TypeError for what JSON cannot say.
    """
    if isinstance(value, str):
        return value
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)


def canonical_bytes(value: Json) -> bytes:
    """`value` as compact canonical JSON in UTF-8, strings quoted; for hashing."""
    text = json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def _plain(value: Json) -> Json:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("object keys must be strings")
        return {key: _plain(item) for key, item in value.items()}
    return value
