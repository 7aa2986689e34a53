"""Reading labelled data on the command line: which model or server, with progress that can be watched and resumed."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from demur.decision.labelled import LabelledData
from demur.decision.task import ReadoutKind, Task
from demur.server.readings import Reader, Readings, read_rows

#: A plain line of progress at every such share of the rows, where there is no terminal.
_PLAIN_STEPS = 10


class KnownReader(Reader, Protocol):
    """A reader that knows which readout is used."""

    readout: ReadoutKind


@dataclass(frozen=True, slots=True)
class Source:
    """Who reads: a model in this process, called `name` in reports, or a server at `url`; one of the two."""

    model: str | None = None
    adapter: Path | None = None
    dtype: str | None = None
    name: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """The readings of each file, and what they were read with."""

    readings: tuple[Readings, ...]
    reader: KnownReader


def gather(
    task: Task, files: Sequence[LabelledData], source: Source, *, cache: Path | None, concurrency: int
) -> Gathered:
    """Reads the rows of all files, those first that were given first.

    Raises DataFileError, ModelUnusable, DemurError, DemurClientError. Ctrl-C keeps what was read in the cache.
    """
    return asyncio.run(_gather(task, files, source, cache, concurrency))


async def _gather(
    task: Task, files: Sequence[LabelledData], source: Source, cache: Path | None, concurrency: int
) -> Gathered:
    async with _reader(task, source) as reader:
        found = []
        for data in files:
            with _Bar(data) as bar:
                found.append(
                    await read_rows(reader, data.rows, cache=cache, concurrency=concurrency, progress=bar.show)
                )
        return Gathered(tuple(found), reader)


@asynccontextmanager
async def _reader(task: Task, source: Source) -> AsyncIterator[KnownReader]:
    if source.model is None:
        from demur.server.url_reader import UrlReader

        async with UrlReader.open(source.url, task) as remote:
            yield remote
        return
    from demur.server.decide import DecidePipeline
    from demur.server.engines.vllm_engine import VllmEngine
    from demur.server.engines.vllm_setup import VllmSettings
    from demur.server.readers import PipelineReader
    from demur.server.settings import MAX_INPUT_TOKENS

    settings = VllmSettings(model=source.model, adapter=source.adapter, name=source.name, dtype=source.dtype)
    engine = await VllmEngine.start(settings)
    try:
        # As a server does unless it is told otherwise, since bundles are pinned to where inputs are cut.
        pipeline = DecidePipeline(engine, max_input_tokens=MAX_INPUT_TOKENS)
        yield PipelineReader(pipeline, task)
    finally:
        await engine.aclose()


class _Bar:
    """Progress of one file: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, data: LabelledData) -> None:
        self._name = Path(data.name).name
        self._tqdm: Any = None
        self._step = -1

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()

    def show(self, done: int, total: int) -> None:
        """Implements `demur.server.readings.Progress`."""
        if sys.stderr.isatty():
            bar = self._tqdm = self._tqdm or tqdm(total=total, unit="row", desc=self._name, file=sys.stderr)
            bar.update(done - bar.n)
            return
        step = done * _PLAIN_STEPS // max(total, 1)
        if step > self._step:
            self._step = step
            sys.stderr.write(f"{self._name}: {done} of {total} rows read\n")
