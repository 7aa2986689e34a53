"""The calibration desk of a running server: raw readings, and bundles that are made and swapped in while it serves."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demur.decision.bundle import MANIFEST, Bundle, write_bundle
from demur.decision.errors import TaskFileError
from demur.decision.labelled import LabelledData, beside
from demur.decision.task import Task
from demur.decision.taskfile import parse_task
from demur.server.bundles import read_bundles
from demur.server.bundling import bundle_files, provenance
from demur.server.calibrate import Calibration, Plan, calibrate
from demur.server.calibrated import Calibrated
from demur.server.decide import DecidePipeline
from demur.server.errors import Conflict, Unavailable
from demur.server.loop.shelf import Shelf
from demur.server.readers import PipelineReader
from demur.server.readings import read_rows
from demur.server.registry import Registry
from demur.server.tasks import task_file

#: Rows read at once beside the traffic.
_CONCURRENCY = 8


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A calibration, and the bundle that it became."""

    calibration: Calibration
    bundle: Bundle


class CalibrationDesk:
    """Implements `demur.server.services.Desk`. `pipeline` gives None until the engine runs."""

    def __init__(
        self,
        pipeline: Callable[[], DecidePipeline | None],
        registry: Registry,
        *,
        tasks: Path | None,
        bundles: Path | None,
    ) -> None:
        self._pipeline = pipeline
        self._registry = registry
        self._tasks = tasks
        self._bundles = bundles
        #: Where bundles are kept as versions, if they are; it swaps them in, in all processes.
        self.shelf: Shelf | None = None
        self._lock = asyncio.Lock()

    def reader(self, task: Task) -> PipelineReader:
        """Reads rows as the task does, without its bundle. Raises Unavailable."""
        return PipelineReader(self._running(), task)

    async def calibrate(
        self,
        task: Task,
        data: LabelledData,
        plan: Plan,
        *,
        unlabelled: LabelledData | None = None,
        by: str | None = None,
    ) -> Made:
        """Reads the rows beside the traffic, makes a bundle and swaps it in between two requests. `by`: id of a key.

        Raises Conflict where there is no place for bundles, DataFileError, CalibrationError, DemurError.
        """
        async with self._lock:
            place = await asyncio.to_thread(self._place, task)
            said = await asyncio.to_thread(self._said, task)
            reader = self.reader(task)
            others, left_out = beside(data, unlabelled)
            readings = await read_rows(reader, data.rows, concurrency=_CONCURRENCY)
            left_out |= readings.left_out
            more = None
            if others is not None and others.rows:
                more = await read_rows(reader, others.rows, concurrency=_CONCURRENCY)
            calibration = await asyncio.to_thread(
                calibrate,
                readings,
                task,
                plan,
                readout=reader.readout,
                unlabelled=more,
                repeats=data.duplicates,
            )
            origin = provenance(calibration, data, model=reader.model, unlabelled=others, left_out=left_out)
            files = await asyncio.to_thread(bundle_files, calibration, task, said, origin, reader.readout, left_out)
            bundle = await asyncio.to_thread(_write, place, task, reader, files)
            if self.shelf is None:
                self._swap(task, bundle)
            else:
                await self.shelf.adopt(task.name, Calibrated.of(bundle), by)
            return Made(calibration, bundle)

    def _swap(self, task: Task, bundle: Bundle) -> None:
        """No request sees half of it: nothing is awaited here."""
        pipeline = self._running()
        served = pipeline.serve_bundle(task, Calibrated.of(bundle))
        self._registry.bundles = {**self._registry.bundles, task.name: served}

    def _running(self) -> DecidePipeline:
        pipeline = self._pipeline()
        if pipeline is None:
            raise Unavailable("the engine is starting; try again later", retry_after=5)
        return pipeline

    def _place(self, task: Task) -> Path:
        if self._bundles is None or self._tasks is None:
            raise Conflict("this server has no directory for bundles; start it with --bundles DIR or --state-dir DIR")
        # A bundle of this task is replaced where it lies, whatever its directory is called; the one that is served may
        # be a version of the store, which lies nowhere.
        lies = read_bundles(self._bundles)
        if task.name in lies:
            return lies[task.name].bundle.path
        if (self._bundles / MANIFEST).exists():
            raise Conflict(f"{self._bundles} is the bundle of another task; start with a directory of bundles")
        return self._bundles / task.name

    def _said(self, task: Task) -> bytes:
        """The task's file, a part of the bundle. Raises Conflict where it says something else than is served."""
        try:
            said = task_file(self._tasks, task.name)
            same = parse_task(said, task.name).content_hash == task.content_hash
        except (OSError, TaskFileError):
            same = False
        if not same:
            raise Conflict(f"the file of task {task.name} is not what is served by now; send SIGHUP, then try again")
        return said


def _write(place: Path, task: Task, reader: PipelineReader, files: dict[str, bytes]) -> Bundle:
    return write_bundle(place, task=task.name, pins=reader.pins, files=files, replace=True)
