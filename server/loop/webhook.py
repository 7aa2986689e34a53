"""Telling others: a signed request for every change of a certificate's state, sent beside everything else.

POST URL
Content-Type: application/json
X-Demur-Event: <id of the event, the same for every retry>
X-Demur-Signature: t=<seconds since 1970>,v1=<hex HMAC-SHA256 of "<t>.<body>">
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

import httpx

_log = logging.getLogger("demur.webhook")

_RETRIES_S = (1.0, 5.0, 30.0, 120.0, 600.0)
_WAITING = 1_000
#: Events that are tried at once, waits between tries included: one that is not taken holds up no other.
_AT_ONCE = 32


def signature(secret: str, body: bytes, at: int) -> str:
    """The header's value."""
    return f"t={at},v1={hmac.new(secret.encode(), f'{at}.'.encode() + body, hashlib.sha256).hexdigest()}"


class Webhook:
    """Sends events, several at once, so in no order. `tell` never waits: when too many do, the oldest is given up."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        retries_s: tuple[float, ...] = _RETRIES_S,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._secret = url, secret
        self._retries_s = retries_s
        self._timeout_s, self._transport = timeout_s, transport
        self._events: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(_WAITING)

    def tell(self, event: str, said: Mapping[str, Any]) -> None:
        """Sends an event later."""
        name = uuid.uuid4().hex
        if self._events.full():
            self._events.get_nowait()
            _log.error("an event was given up: too many wait for the webhook")
        self._events.put_nowait((name, json.dumps({"id": name, "event": event, **said}).encode()))

    async def run(self) -> None:
        """Sends what `tell` was given, until it is cancelled."""
        async with (
            httpx.AsyncClient(timeout=self._timeout_s, transport=self._transport) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(_AT_ONCE):
                group.create_task(self._send(client))

    async def _send(self, client: httpx.AsyncClient) -> None:
        while True:
            name, body = await self._events.get()
            await self._deliver(client, name, body)

    async def _deliver(self, client: httpx.AsyncClient, name: str, body: bytes) -> None:
        for wait in (*self._retries_s, None):
            problem = await self._post(client, name, body)
            if problem is None:
                return
            said = {"event_id": name, "problem": problem, "retry_in_s": wait}
            if wait is None:
                _log.error("the webhook did not take an event, which is given up", extra={"fields": said})
                return
            _log.warning("the webhook did not take an event yet", extra={"fields": said})
            await asyncio.sleep(wait)

    async def _post(self, client: httpx.AsyncClient, name: str, body: bytes) -> str | None:
        """One try; why it failed, if it did."""
        try:
            at = int(time.time())
            headers = {
                "Content-Type": "application/json",
                "X-Demur-Event": name,
                "X-Demur-Signature": signature(self._secret, body, at),
            }
            answer = await client.post(self._url, content=body, headers=headers)
        except Exception as error:  # connections and names can fail in ways that are no HTTPError
            return type(error).__name__
        return None if answer.is_success else str(answer.status_code)
