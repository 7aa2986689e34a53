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


def signature(secret: str, body: bytes, at: int) -> str:
    """The header's value."""
    return f"t={at},v1={hmac.new(secret.encode(), f'{at}.'.encode() + body, hashlib.sha256).hexdigest()}"


class Webhook:
    """Sends events in their order. `tell` never waits: when too many do, the oldest is given up."""

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
        async with httpx.AsyncClient(timeout=self._timeout_s, transport=self._transport) as client:
            while True:
                name, body = await self._events.get()
                await self._deliver(client, name, body)

    async def _deliver(self, client: httpx.AsyncClient, name: str, body: bytes) -> None:
        problem = ""
        for wait in (0.0, *self._retries_s):
            await asyncio.sleep(wait)
            at = int(time.time())
            headers = {
                "Content-Type": "application/json",
                "X-Demur-Event": name,
                "X-Demur-Signature": signature(self._secret, body, at),
            }
            try:
                answer = await client.post(self._url, content=body, headers=headers)
            except httpx.HTTPError as error:
                problem = type(error).__name__
                continue
            if answer.is_success:
                return
            problem = str(answer.status_code)
        _log.error("the webhook did not take an event", extra={"fields": {"event_id": name, "problem": problem}})
