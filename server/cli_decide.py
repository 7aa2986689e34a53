"""`demur decide`: decisions from a running server, or in this process."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from demur.server.cli_options import adapter_option, check_model_options, dtype_option

Row = dict[str, Any]


@click.command()
@click.argument("task")
@click.argument("text", metavar="[INPUT]", required=False)
@click.option("--url", help="Server to ask.  [default: DEMUR_URL, or http://127.0.0.1:8000]")
@click.option("--model", help="Decide in this process with this model instead; wants --tasks.")
@adapter_option
@dtype_option
@click.option(
    "--tasks", "directory", type=click.Path(path_type=Path, exists=True), help="Task files, for deciding in process."
)
@click.option("--explain", is_flag=True, help="Show the thought of a reasoned decision.")
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1, 64), help="Batches under way.")
def decide(
    task: str,
    text: str | None,
    url: str | None,
    model: str | None,
    adapter: Path | None,
    dtype: str | None,
    directory: Path | None,
    explain: bool,
    concurrency: int,
) -> None:
    """Decide TASK about INPUT, or about every line of standard input.

    A line is JSON: an input, or an object with an `input` and whatever else is to come back with the answer, under
    `row` where the answer has a member of that name. One line of JSON goes to standard output for each; the exit
    status is 1 if any is a problem. The key is DEMUR_API_KEY.
    """
    check_model_options(model, adapter, dtype)
    try:
        rows = list(_rows(sys.stdin)) if text is None else [_sayable({"input": text}, "the input")]
    except UnicodeDecodeError:
        raise click.ClickException("the input is not UTF-8") from None
    if model is None:
        answers = _ask(task, rows, url, explain, concurrency)
    else:
        if directory is None:
            raise click.UsageError("--model wants --tasks, the directory of task files")
        answers = _in_process(task, rows, {"model": model, "adapter": adapter, "dtype": dtype}, directory, explain)
    problems = 0
    # On a terminal a bar; elsewhere a plain line now and then.
    bar = tqdm(answers, total=len(rows), unit="decision", disable=text is not None, mininterval=0.5, file=sys.stderr)
    for row, answer in zip(rows, bar, strict=True):
        problems += "problem" in answer
        rest = {key: value for key, value in row.items() if key != "input"}
        if taken := {key: rest.pop(key) for key in rest.keys() & answer.keys()}:
            rest["row"] = taken | ({"row": rest["row"]} if "row" in rest else {})
        click.echo(json.dumps(rest | answer, ensure_ascii=False, indent=2 if text is not None else None))
    sys.exit(1 if problems else 0)


def _rows(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise click.ClickException(f"line {number} of the input is not JSON: {error}") from None
        row = value if isinstance(value, dict) and "input" in value else {"input": value}
        yield _sayable(row, f"line {number} of the input")


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        raise ValueError("a key of an object is given twice")
    return value


def _sayable(row: Row, where: str) -> Row:
    """The row. Ends the command where its input is null, or holds what Python reads and JSON in UTF-8 cannot say."""
    from demur.decision.canonical import canonical_bytes

    if row["input"] is None:
        raise click.ClickException(f"{where} is null, and there is nothing to decide about")
    try:
        canonical_bytes(row)
    except (ValueError, RecursionError):
        raise click.ClickException(f"{where} holds NaN, an infinity or half a surrogate pair") from None
    return row


def _ask(task: str, rows: list[Row], url: str | None, explain: bool, concurrency: int) -> Iterator[Row]:
    from demur.clients import Client, ConnectionFailed, DemurClientError, ProblemError

    try:
        client = Client(url)
    except ValueError as error:
        raise click.UsageError(f"{error}; check --url, DEMUR_URL and DEMUR_API_KEY") from None
    try:
        with client:
            inputs = [row["input"] for row in rows]
            for item in client.decide_many(inputs, task=task, explain=explain, concurrency=concurrency):
                if item.answer is not None:
                    yield item.answer.model_dump(mode="json", exclude_none=True)
                elif isinstance(item.error, ConnectionFailed):
                    raise item.error  # the rest would fail too
                else:
                    yield {"problem": str(item.error)}
    except ProblemError as error:
        raise click.ClickException(str(error)) from None
    except DemurClientError as error:
        raise click.ClickException(f"{error} (is a server running? `demur serve --demo` starts one)") from None


def _in_process(task: str, rows: list[Row], engine: dict[str, Any], directory: Path, explain: bool) -> Iterator[Row]:
    from demur.decision.errors import DecisionError
    from demur.server.engines.identity import ModelUnusable

    with asyncio.Runner() as runner:
        answers = _run(task, rows, engine, directory, explain)
        try:
            while True:
                try:
                    yield runner.run(anext(answers))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        except (DecisionError, ModelUnusable) as error:
            raise click.ClickException(str(error)) from None
        finally:
            runner.run(answers.aclose())  # type: ignore[attr-defined]


async def _run(
    name: str, rows: list[Row], settings: dict[str, Any], directory: Path, explain: bool
) -> AsyncIterator[Row]:
    from demur.decision.canonical import canonical_text
    from demur.decision.slices import slice_of
    from demur.server.decide import DecidePipeline
    from demur.server.engines.vllm_engine import VllmEngine
    from demur.server.engines.vllm_setup import VllmSettings
    from demur.server.errors import DemurError
    from demur.server.tasks import read_tasks
    from demur.server.types import DecideRequest
    from demur.server.wires.decide import answer_members, unknown_task

    tasks = read_tasks(directory)
    if name not in tasks:
        raise click.ClickException(unknown_task(name, list(tasks)).detail)
    task = tasks[name]
    engine = await VllmEngine.start(VllmSettings(**settings))
    try:
        pipeline = DecidePipeline(engine, max_input_tokens=engine.identity.max_model_len)
        for row in rows:
            value = row["input"]
            part = slice_of(value, task.slice_by)
            request = DecideRequest(task.spec, canonical_text(value), task, task.policy, explain=explain, slice=part)
            try:
                yield answer_members(await pipeline.decide(request))
            except DemurError as error:
                yield {"problem": error.detail}
    finally:
        await engine.aclose()
