"""`demur bundle`: looking at bundles."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from demur.decision.bundle import PINS, read_bundle
from demur.decision.errors import BundleError, DecisionError
from demur.server.cli_options import adapter_option, check_model_options

if TYPE_CHECKING:
    from demur.calibration import Certificate
    from demur.server.calibrated import Calibrated
    from demur.server.guarantee import Guarantee

_DIRECTORY = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group()
def bundle() -> None:
    """Look at bundles: what a task's verdicts rest on."""


@bundle.command()
@click.argument("directory", type=_DIRECTORY)
def show(directory: Path) -> None:
    """Print what the bundle in DIRECTORY is and promises, as JSON. Exits with 1 if it cannot be used."""
    calibrated = _open(directory)
    found = calibrated.bundle
    guarantee = calibrated.guarantee
    click.echo(
        json.dumps(
            {
                "id": found.id,
                "task": found.task,
                "created_at": found.created_at.isoformat(),
                "method": calibrated.method,
                "n": calibrated.n,
                "score": calibrated.score_name,
                **_promises(guarantee),
                "slice_by": None if guarantee is None else guarantee.slice_by,
                "slices": {value: _promises(one) for value, one in (guarantee.slices if guarantee else {}).items()},
                "expires_at": guarantee.ends_at.isoformat() if guarantee and guarantee.ends_at else None,
                "provenance": found.document("provenance.json"),
                "pins": dict(found.pins),
                "files": sorted(found.files),
            },
            indent=2,
            ensure_ascii=False,
        )
    )


@bundle.command()
@click.argument("directories", nargs=-1, required=True, type=_DIRECTORY)
@click.option("--model", type=_DIRECTORY, help="Hold the pins against this model too.")
@adapter_option
@click.option(
    "--max-model-len", type=click.IntRange(min=64), help="The server's tokens of context [the model's, at most 8192]."
)
@click.option("--tasks", type=click.Path(path_type=Path, exists=True), help="Task files in place of the bundle's own.")
def verify(
    directories: tuple[Path, ...],
    model: Path | None,
    adapter: Path | None,
    max_model_len: int | None,
    tasks: Path | None,
) -> None:
    """Check every byte of the bundles in DIRECTORIES, and with a model whether it is the one they were made with.

    Says which file or which part is not as it was. Exits with 1 if there is any.
    """
    check_model_options(model, adapter)
    if model is None and (tasks is not None or max_model_len is not None):
        raise click.UsageError("--tasks and --max-model-len want --model, which bundles are held against")
    wrong = False
    running = None if model is None else _Model(model, adapter, max_model_len)
    for directory in directories:
        try:
            calibrated = _read(directory)
            found = calibrated.bundle
            parts = () if running is None else running.mismatches(calibrated, tasks)
        except DecisionError as error:
            click.echo(f"demur: {error}", err=True)
            wrong = True
            continue
        if parts:
            click.echo(f"{directory}: made for another {', '.join(parts)}", err=True)
            wrong = True
        else:
            click.echo(f"{directory}: {found.task}, {len(found.files)} files as they were written, id {found.id[:12]}")
    sys.exit(1 if wrong else 0)


@bundle.command()
@click.argument("first", type=_DIRECTORY)
@click.argument("second", type=_DIRECTORY)
def diff(first: Path, second: Path) -> None:
    """Print what differs between the bundles in FIRST and SECOND, a line each. Exits with 1 if anything does."""
    lines = list(_differences(_open(first), _open(second)))
    for line in lines:
        click.echo(line)
    sys.exit(1 if lines else 0)


class _Model:
    """A model directory, with an adapter or without, hashed and its tokenizer loaded once."""

    def __init__(self, directory: Path, adapter: Path | None, context: int | None) -> None:
        from transformers import AutoTokenizer

        from demur.decision.prompt import PromptBuilder
        from demur.server.engines.adapter import check_adapter
        from demur.server.engines.identity import ModelUnusable, check_servable, identify, usual_context

        try:
            config = check_servable(directory, cpu=False)
            if adapter is not None:
                check_adapter(adapter, directory, config)
            tokenizer = AutoTokenizer.from_pretrained(directory)
            self._prompts = PromptBuilder(tokenizer)
        except (ModelUnusable, DecisionError) as error:
            raise click.ClickException(str(error)) from None
        template = str(tokenizer.chat_template or "")
        self._identity = identify(
            directory,
            name=None,
            engine="none",
            max_model_len=context or usual_context(config),
            chat_template=template,
            adapter=adapter,
        )

    def mismatches(self, calibrated: "Calibrated", tasks: Path | None) -> tuple[str, ...]:
        """What of the bundle would not fit its task on this model. Raises DecisionError."""
        from demur.decision.taskfile import parse_task
        from demur.server.calibrated import pins
        from demur.server.engines.identity import served_as
        from demur.server.settings import MAX_INPUT_TOKENS
        from demur.server.tasks import read_tasks

        found = calibrated.bundle
        if tasks is None:
            task = parse_task(found.files["task.yaml"], str(found.path / "task.yaml"))
        elif (known := read_tasks(tasks).get(found.task)) is not None:
            task = known
        else:
            raise BundleError(f"{tasks} has no task {found.task}")
        # Nothing runs here, so the number format is taken to be the bundle's.
        formats = ("float32", "bfloat16", "float16")
        served = {served_as(self._identity.weights, dtype) for dtype in formats} & {found.pins["weights"]}
        identity = replace(self._identity, weights=found.pins["weights"]) if served else self._identity
        prompt = self._prompts.compile(task.spec)
        room = min(identity.max_model_len - prompt.fixed_tokens, MAX_INPUT_TOKENS)
        running = pins(task.spec, prompt, identity, room)
        return calibrated.mismatches(running, task.slice_by)


def _differences(first: "Calibrated", second: "Calibrated") -> Iterator[str]:
    one, other = first.bundle, second.bundle
    if one.task != other.task:
        yield f"task: {one.task} -> {other.task}"
    for pin in PINS:
        if one.pins.get(pin) != other.pins.get(pin):
            yield f"pin {pin}: {str(one.pins.get(pin))[:12]} -> {str(other.pins.get(pin))[:12]}"
    for what, before, after in (
        ("method", first.method, second.method),
        ("labels", first.n, second.n),
        ("score", first.score_name, second.score_name),
        *_thresholds(first, second),
    ):
        if before != after:
            yield f"{what}: {before} -> {after}"
    for name in sorted(one.files.keys() | other.files.keys()):
        if one.files.get(name) != other.files.get(name):
            present = "changed" if name in one.files and name in other.files else "in one of them only"
            yield f"file {name}: {present}"


def _thresholds(first: "Calibrated", second: "Calibrated") -> Iterator[tuple[str, Any, Any]]:
    """From where on each of them trusts and answers: the whole traffic, and every slice that one of them knows."""
    one, other = first.guarantee, second.guarantee
    yield "slice by", one and one.slice_by, other and other.slice_by
    parts, others = (guarantee.slices if guarantee else {} for guarantee in (one, other))
    values = sorted(parts.keys() | others.keys())
    by_slice = [(f"slice {value}: ", parts.get(value), others.get(value)) for value in values]
    for where, before, after in [("", one, other), *by_slice]:
        yield f"{where}trust from", before and before.trust_at, after and after.trust_at
        yield f"{where}answer from", before and before.answer_at, after and after.answer_at


def _promises(guarantee: "Guarantee | None") -> dict[str, Any]:
    if guarantee is None:
        return {"trusted": None, "not_deferred": None}
    return {"trusted": _promise(guarantee.trusted), "not_deferred": _promise(guarantee.not_deferred)}


def _promise(certificate: "Certificate | None") -> dict[str, Any] | None:
    if certificate is None:
        return None
    named = ("alpha", "delta", "thresholds", "n", "errors", "route", "attempt")
    return {name: getattr(certificate, name) for name in named}


def _read(directory: Path) -> "Calibrated":
    from demur.server.calibrated import Calibrated  # imported here: the other commands answer at once

    return Calibrated.of(read_bundle(directory))


def _open(directory: Path) -> "Calibrated":
    """The bundle, or the end of the command with its fault on standard error."""
    try:
        return _read(directory)
    except DecisionError as error:
        click.echo(f"demur: {error}", err=True)
        sys.exit(1)
