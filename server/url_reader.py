"""Readings from a running server, by its admin route `POST /tasks/{name}/readings`."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from demur.clients import DemurClientError
from demur.decision.errors import DataFileError
from demur.decision.labelled import LabelledRow
from demur.decision.readout import Readout
from demur.decision.task import ReadoutKind, Task
from demur.server.errors import InputTooLong
from demur.server.readings import TrainedOn

_DEFAULT = "http://127.0.0.1:8000"
_TIMEOUT_S = 120.0
#: A server that is busy with other traffic is asked so often, after what its Retry-After says.
_ATTEMPTS = 8
_LONGEST_PAUSE_S = 30


class UrlReader:
    """Implements `Reader` on a server that serves the same task. Its key is DEMUR_API_KEY."""

    def __init__(self, http: httpx.AsyncClient, task: Task, pinned: Mapping[str, Any]) -> None:
        self.pins: Mapping[str, str] = pinned["pins"]
        self.model: str = pinned["model"]
        self.readout = ReadoutKind(pinned["readout"])
        self._http = http
        self._path = _path(task)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | None, task: Task) -> AsyncIterator["UrlReader"]:
        """Connects, and makes sure that the server's task is this one. Raises DemurClientError, DataFileError."""
        key = os.environ.get("DEMUR_API_KEY")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        base = (url or os.environ.get("DEMUR_URL") or _DEFAULT).rstrip("/")
        try:
            client = httpx.AsyncClient(base_url=base, headers=headers, timeout=_TIMEOUT_S)
        except (httpx.InvalidURL, ValueError):  # a key may be what does not fit into a header
            raise DemurClientError("the server's URL or DEMUR_API_KEY cannot be used; check both") from None
        async with client as http:
            pinned = await _post(http, _path(task), {"inputs": []})
            if pinned.get("task_hash") != task.content_hash:
                raise DataFileError(f"the server's task {task.name} is not that of the task file")
            yield cls(http, task, pinned)

    async def read(self, row: LabelledRow) -> Readout:
        """See `Reader.read`."""
        if row.own is not None:
            raise DataFileError(f"line {row.line}: a server reads the task's own question only; use --model")
        (item,) = (await _post(self._http, self._path, {"inputs": [row.text]}))["items"]
        if item.get("trained_on"):
            raise TrainedOn
        if "problem" in item:
            problem = item["problem"]
            if problem["type"].endswith(":input_too_long"):
                raise InputTooLong(problem["detail"])
            raise DemurClientError(f"line {row.line}: {problem['detail']}")
        scores = np.array([-np.inf if score is None else score for score in item["scores"]], dtype=np.float64)
        return Readout(scores, scores, float(item["label_mass"]))


def _path(task: Task) -> str:
    return f"/tasks/{quote(task.name, safe='')}/readings"


async def _post(http: httpx.AsyncClient, path: str, body: Any) -> dict[str, Any]:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = await http.post(path, json=body)
        except httpx.RequestError as error:
            raise DemurClientError(f"{http.base_url} does not answer: {type(error).__name__}") from None
        if response.status_code not in (429, 503) or attempt == _ATTEMPTS:
            break
        wanted = response.headers.get("Retry-After", "")
        await asyncio.sleep(min(int(wanted) if wanted.isdecimal() else 1, _LONGEST_PAUSE_S))
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise DemurClientError(f"{http.base_url} answers {response.status_code}, and not as a Demur server does")
    if response.status_code != 200:
        raise DemurClientError(f"{http.base_url} answers {response.status_code}: {answer.get('detail', 'no detail')}")
    return answer
