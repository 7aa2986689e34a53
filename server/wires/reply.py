"""JSON responses, encoded once and sent as they are."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]

# Not-a-number has no place in an answer: encoding it fails, and so does the request.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def json_reply(
    body: Any,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """A response with `body` as JSON. Raises ValueError on NaN and infinities."""
    return Response(_encode(body).encode(), status, headers, media_type)
