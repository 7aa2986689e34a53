"""Prompts as token ids."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to be read, and the salt that separates prefix caches of different callers."""

    ids: tuple[int, ...]
    cache_salt: str | None = None
