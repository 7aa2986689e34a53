"""Where the server is and how to speak to it."""

import os
from dataclasses import dataclass, field

import httpx

from demur.clients._retry import RetryPolicy

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 60.0
#: Sockets and the server's header take no more; who waits longer than eleven days waits for something else.
MAX_SECONDS = 1e6


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved settings of a client. The key stays out of the representation."""

    base_url: httpx.URL
    api_key: str | None = field(repr=False)
    timeout: float
    retry: RetryPolicy

    def url(self, path: str) -> httpx.URL:
        """A path of the server, which may itself be mounted under a path."""
        return self.base_url.copy_with(raw_path=self.base_url.raw_path.rstrip(b"/") + path.encode())


def resolve(base_url: str | None, api_key: str | None, timeout: float, retry: RetryPolicy | None) -> Settings:
    """Settings from arguments, then `DEMUR_URL` and `DEMUR_API_KEY`, then defaults. Raises ValueError."""
    try:
        url = httpx.URL(base_url or os.environ.get("DEMUR_URL") or DEFAULT_URL)
    except httpx.InvalidURL:  # which may quote credentials
        raise ValueError("the base URL is no URL") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("the base URL must start with http:// or https:// and name a host")
    if url.userinfo or url.query or url.fragment:
        # httpx logs the URLs that it asks, so credentials must not stand in them.
        raise ValueError("the base URL must hold no credentials, query or fragment; give the key as api_key")
    key = api_key or os.environ.get("DEMUR_API_KEY") or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError("the API key must be printable ASCII without spaces")
    check_seconds("timeout", timeout)
    return Settings(url, key, timeout, retry or RetryPolicy())


def check_seconds(name: str, value: float) -> None:
    """Raises ValueError unless `value` can bound a call."""
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(f"{name} must be above 0 and at most {MAX_SECONDS:,.0f} seconds")
