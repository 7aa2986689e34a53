"""Canonical text of JSON values."""

import json
from typing import Any


def render_input(value: Any) -> str:
    """A JSON value as text: strings unchanged, anything else as JSON with sorted keys and no spare whitespace."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
