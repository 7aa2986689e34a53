"""Readings: what the model says of labelled rows, each read once, kept in a file so that a stopped run resumes."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from demur.decision.canonical import canonical_bytes
from demur.decision.errors import DataFileError
from demur.decision.labelled import LabelledRow
from demur.decision.readout import Readout
from demur.server.errors import InputTooLong, Invalid

#: Told how many rows are read, of how many.
Progress = Callable[[int, int], None]
_SCHEMA = 1


class TrainedOn(Exception):
    """The checkpoint was trained on this row, so it says nothing about others."""


class Reader(Protocol):
    """Something that reads rows as it would for a decision: an engine in this process, or a server."""

    #: What the reads are pinned to; see `demur.decision.bundle.PINS`.
    pins: Mapping[str, str]
    #: Name of the model, for reports.
    model: str

    async def read(self, row: LabelledRow) -> Readout:
        """The raw readout of a row.

        Raises InputTooLong for a row that cannot be decided, TrainedOn for one that is no evidence, or DemurError.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Rows and their readouts: `scores` [n, K] (log-probabilities up to a constant a row), `label_mass` [n].

    `too_long` counts rows that do not fit the context: they are refused, and so were never decided. `trained_on` counts
    rows that were left out since the checkpoint was trained on them.
    """

    rows: tuple[LabelledRow, ...]
    scores: NDArray[np.float64]
    label_mass: NDArray[np.float64]
    too_long: int = 0
    trained_on: int = 0

    @property
    def labels(self) -> NDArray[np.int64]:
        """[n], option indices; -1 where a row has no label."""
        return np.array([-1 if row.label is None else row.label for row in self.rows], dtype=np.int64)

    @property
    def left_out(self) -> dict[str, int]:
        """How many rows were not taken, by why."""
        return {"trained_on": self.trained_on, "too_long": self.too_long}

    @property
    def units(self) -> list[str]:
        """[n], what counts as one piece of evidence; see `LabelledRow.unit`."""
        return [row.unit for row in self.rows]

    def readout(self, index: int) -> Readout:
        """One row's readout, as the serving code takes it."""
        return Readout(self.scores[index], self.scores[index], float(self.label_mass[index]))

    def take(self, chosen: NDArray[Any]) -> "Readings":
        """Those rows, by index or mask."""
        indices = np.arange(len(self.rows))[chosen]
        return Readings(tuple(self.rows[i] for i in indices), self.scores[indices], self.label_mass[indices])


class ReadCache:
    """Readouts by row hash in a JSON Lines file that begins with a digest of the pins. It holds no input.

    A file made with other pins is begun anew: its reads are of another model, prompt or question. A line that was cut
    when a run was stopped is dropped. Raises DataFileError for a file that holds something else.
    """

    def __init__(self, path: Path | None, pins: Mapping[str, str]) -> None:
        self._path = path
        digest = hashlib.sha256(canonical_bytes(dict(pins))).hexdigest()
        self._head = {"schema": _SCHEMA, "pins": digest}
        self._fits = False
        self.known = self._load()
        self._file: IO[str] | None = None

    def __enter__(self) -> "ReadCache":
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a" if self._fits else "w", encoding="utf-8")
            # A line that was cut is ended, so that the next one stands alone.
            self._file.write("\n" if self._fits else json.dumps(self._head) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: str, readout: Readout) -> None:
        """Keeps a readout, on disk too."""
        self.known[key] = readout
        if self._file is not None:
            self._file.write(json.dumps(_line(key, readout)) + "\n")
            self._file.flush()

    def _load(self) -> dict[str, Readout]:
        if self._path is None or not self._path.is_file():
            return {}
        lines = self._path.read_bytes().splitlines()
        head = _parsed(lines[0]) if lines else None
        if lines and not (isinstance(head, dict) and head.keys() == self._head.keys()):
            raise DataFileError(f"{self._path} is no file of reads, and would be written over; name another")
        self._fits = head == self._head
        if not self._fits:
            return {}
        known: dict[str, Readout] = {}
        for line in lines[1:]:
            match _parsed(line):
                case {"row": str() as key, "scores": list() as scores, "label_mass": float() | int() as mass}:
                    array = np.asarray(scores, dtype=np.float64)
                    known[key] = Readout(array, array, float(mass))
        return known


async def read_rows(
    reader: Reader,
    rows: Sequence[LabelledRow],
    *,
    cache: Path | None = None,
    concurrency: int = 32,
    progress: Progress | None = None,
) -> Readings:
    """Reads every row that the cache does not know, so many at once.

    Raises DataFileError for a row that the model cannot be asked, or whose readout is no distribution or has another
    number of options than the rows before; whatever the reader raises. What was read until then is kept.
    """
    with ReadCache(cache, reader.pins) as kept:
        done = sum(row.hash in kept.known for row in rows)
        too_long: set[str] = set()
        trained_on: set[str] = set()
        if progress is not None:
            progress(done, len(rows))

        async def work(waiting: Iterable[LabelledRow]) -> None:
            nonlocal done
            for row in waiting:
                try:
                    kept.add(row.hash, await reader.read(row))
                except InputTooLong:
                    too_long.add(row.hash)
                except TrainedOn:
                    trained_on.add(row.hash)
                except Invalid as error:
                    raise DataFileError(f"line {row.line}: {error.detail}") from None
                done += 1
                if progress is not None:
                    progress(done, len(rows))

        queue = iter([row for row in rows if row.hash not in kept.known])
        await _all(work(queue) for _ in range(concurrency))
        usable = [row for row in rows if row.hash not in too_long | trained_on]
        if not usable:
            raise DataFileError(
                f"no row is left: {len(too_long)} do not fit the model's context, and the checkpoint was trained on "
                f"{len(trained_on)}"
            )
        scores, label_mass = _checked(usable, kept.known)
        return Readings(tuple(usable), scores, label_mass, len(too_long), len(trained_on))


def _checked(rows: list[LabelledRow], known: Mapping[str, Readout]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scores [n, K] and label masses [n] of these rows."""
    width = len(known[rows[0].hash].scores)
    for row in rows:
        readout = known[row.hash]
        if len(readout.scores) != width:
            raise DataFileError(f"line {row.line}: {len(readout.scores)} options, but the rows before have {width}")
        # Minus infinity is an exact zero and a distribution may hold some, not only them.
        usable = np.isfinite(readout.scores.max()) and 0.0 <= readout.label_mass <= 1.0
        if not usable or np.isnan(readout.scores).any():
            raise DataFileError(f"line {row.line}: its reading {readout.scores.tolist()} is not a distribution")
    scores = np.stack([known[row.hash].scores for row in rows])
    return scores, np.array([known[row.hash].label_mass for row in rows])


async def _all(works: Iterable[Any]) -> None:
    """All at once; the first failure ends the others and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _line(key: str, readout: Readout) -> dict[str, Any]:
    return {"row": key, "scores": readout.scores.tolist(), "label_mass": readout.label_mass}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
