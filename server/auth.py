"""Who is asking: API keys, checked before anything else of a request is looked at."""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path

from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from demur.server.errors import Forbidden, Unauthorized
from demur.server.settings import Settings, SettingsError
from demur.server.wires.reply import Endpoint

CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Role(StrEnum):
    """What a caller may do. Where no key is configured, everybody is an admin."""

    CALLER = "caller"
    FEEDBACK = "feedback"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller who was let in. `key_id` tells keys apart without giving them away; None where none is needed.

    `name` is what labels are marked with: the key's name, else its id.
    """

    role: Role
    key_id: str | None = None
    name: str | None = None

    @property
    def may_label(self) -> bool:
        """Whether labels are taken from this caller, and decisions shown for labelling."""
        return self.role is not Role.CALLER


class Keyring:
    """The configured keys, as digests."""

    def __init__(
        self, callers: Iterable[str], admins: Iterable[str], *, required: bool, labellers: Iterable[str] = ()
    ) -> None:
        """`labellers` may carry a name each: `NAME:KEY`. Raises `SettingsError` for an empty key."""
        self._required = required
        named = {}
        for entry in labellers:
            name, _, key = entry.rpartition(":")
            named[key.strip()] = name.strip()
        # Greater rights come last: a key that is listed twice has the greater one.
        self._keys = [
            (_digest(_filled(key, setting)), role)
            for setting, role, keys in (
                ("api_keys", Role.CALLER, callers),
                ("feedback_keys", Role.FEEDBACK, named),
                ("admin_keys", Role.ADMIN, admins),
            )
            for key in keys
        ]
        self._names = {_digest(key.encode()): name for key, name in named.items() if name}

    @classmethod
    def from_settings(cls, settings: Settings) -> "Keyring":
        """Reads the key files too. Raises `SettingsError`."""
        return cls(
            _keys("api_keys", settings.api_keys, settings.api_keys_file),
            _keys("admin_keys", settings.admin_keys, settings.admin_keys_file),
            required=settings.requires_key,
            labellers=_keys("feedback_keys", settings.feedback_keys, settings.feedback_keys_file),
        )

    def identify(self, authorization: bytes | None) -> Caller:
        """The caller behind an `Authorization` header. Raises `Unauthorized`."""
        if not self._required:
            return Caller(Role.ADMIN)
        if authorization is None:
            raise Unauthorized("send an API key as `Authorization: Bearer KEY`", headers=CHALLENGE)
        scheme, _, key = authorization.partition(b" ")
        given = _digest(key.strip())
        found: Role | None = None
        for digest, role in self._keys:  # no early exit: the time taken must not say which key came close
            if hmac.compare_digest(given, digest):
                found = role
        if scheme.lower() != b"bearer" or found is None:
            raise Unauthorized("the API key is not valid here", headers=CHALLENGE)
        key_id = given.hex()[:16]
        return Caller(found, key_id, self._names.get(given, key_id))


class Authentication:
    """ASGI middleware that puts the `Caller` into the request's state, or raises `Unauthorized`."""

    def __init__(self, app: ASGIApp, keyring: Keyring, public: frozenset[str]) -> None:
        self._app = app
        self._keyring = keyring
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request in, or raises `Unauthorized`."""
        if scope["type"] == "http" and scope["path"] not in self._public:
            header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
            scope.setdefault("state", {})["caller"] = self._keyring.identify(header)
        await self._app(scope, receive, send)


def admin_only(endpoint: Endpoint) -> Endpoint:
    """Wraps an endpoint so that an ordinary key is refused before its body is read. Raises `Forbidden`."""

    @wraps(endpoint)
    async def guarded(request: Request) -> Response:
        caller: Caller = request.state.caller
        if caller.role is not Role.ADMIN:
            raise Forbidden("this route needs an admin key")
        return await endpoint(request)

    return guarded


def labels_only(endpoint: Endpoint) -> Endpoint:
    """Wraps an endpoint so that a key without the feedback right is refused. Raises `Forbidden`."""

    @wraps(endpoint)
    async def guarded(request: Request) -> Response:
        caller: Caller = request.state.caller
        if not caller.may_label:
            raise Forbidden("this route needs a key with the feedback right (feedback_keys), or an admin key")
        return await endpoint(request)

    return guarded


def _filled(key: str, setting: str) -> bytes:
    # An empty key would let in whoever sends none.
    if not key.strip():
        raise SettingsError(f"{setting}: a key is empty; give it its characters, or leave the entry out")
    return key.strip().encode()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _keys(name: str, keys: tuple[SecretStr, ...], file: Path | None) -> list[str]:
    found = [key.get_secret_value() for key in keys]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name}_file: cannot read {file}: {type(error).__name__}") from None
        stripped = (line.partition("#")[0].strip() for line in lines)
        found += [line for line in stripped if line]
    return found
