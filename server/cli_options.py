"""Command-line flags: those made from the settings, so that `--help` shows every default, and one that many share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from demur.server.settings import Settings

#: Beside `--model`.
adapter_option = click.option(
    "--adapter", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A LoRA adapter of that model."
)


#: Beside `--model` where the model is run.
dtype_option = click.option(
    "--dtype", help="Number format of the weights; else float32 on a CPU, and vLLM's choice on a GPU."
)


def check_model_options(model: object, adapter: Path | None, dtype: str | None = None) -> None:
    """Raises click.UsageError for what says how to run a model where there is none."""
    if adapter is not None and model is None:
        raise click.UsageError("--adapter wants --model, the model that it adapts")
    if dtype is not None and model is None:
        raise click.UsageError("--dtype wants --model; a server has a format of its own")


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for every setting. Values stay text; the settings object checks them."""
    for name, field in reversed(Settings.model_fields.items()):
        if SecretStr not in _types(field.annotation):  # it would show in the process list
            command = _option(name, field)(command)
    return command


def flag_values(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, by setting."""
    return {name: value for name, value in flags.items() if value is not None}


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


def _option(name: str, field: FieldInfo) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = f"--{name.replace('_', '-')}"
    shown = "" if field.default in (None, (), PydanticUndefined) else f"  [default: {field.default}]"
    text = (field.description or "") + shown
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    return click.option(flag, name, default=None, metavar="VALUE", help=text)
