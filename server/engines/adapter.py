"""LoRA adapters as PEFT writes them, held against the model before vLLM starts.

vLLM finds most faults a minute later, and some never: it passes over layers that the model does not have, and copies a
matrix that is too small into a corner of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from demur.server.engines.identity import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelUnusable, read_json

#: The ranks that vLLM makes room for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
_ENDS = frozenset({"embed_tokens", "lm_head"})
_MERGE = "merge it into the model instead (demur train --merge, or PEFT's merge_and_unload)"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's directory, and the rank that vLLM makes room for."""

    path: Path
    max_rank: int


def check_adapter(path: Path, model: Path, config: Mapping[str, Any]) -> Adapter:
    """Reads an adapter's configuration and the headers of its weights and of the model's.

    Args:
        path: the directory that PEFT's `save_pretrained` wrote.
        model: the directory of the model that it adapts. Where that lay when it was trained does not matter.
        config: the model's config.json.

    Raises ModelUnusable where it is not a LoRA adapter, vLLM could not serve all of it, or it is not of this model.
    """
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise ModelUnusable(f"{path} is not a directory: --adapter wants one that PEFT's save_pretrained wrote")
    ranks = _ranks(path / ADAPTER_CONFIG)
    if max(ranks) > _RANKS[-1]:
        raise ModelUnusable(f"{path} has rank {max(ranks)}, and vLLM serves ranks up to {_RANKS[-1]}: {_MERGE}")
    weights = path / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ModelUnusable(f"{weights} is missing: save the adapter with PEFT's save_pretrained")
    adapted = _layers(weights)
    known = {name: shape for file in model.glob("*.safetensors") for name, shape in _shapes(file).items()}
    names = {name.rpartition(".")[0] for name in known}
    for layer, parts in adapted.items():
        if layer not in names:
            raise ModelUnusable(
                f"{weights} adapts {layer}, which is not among the weights of {model.name} (*.safetensors): "
                "serve it with the model that it was trained on"
            )
        down, up = parts.get("A", ()), parts.get("B", ())
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[0] not in ranks:
            raise ModelUnusable(
                f"{weights}: {layer} has matrices {list(down)} and {list(up)}, which is no adapter of the rank in "
                f"{ADAPTER_CONFIG}; save the adapter anew"
            )
        shape = known.get(f"{layer}.weight")
        # Quantised weights are packed into other shapes.
        if shape not in (None, (up[0], down[1])) and "quantization_config" not in config:
            raise ModelUnusable(
                f"{weights} was trained on another model than {model.name}: it adapts a {layer} of "
                f"{up[0]} x {down[1]}, and here that is {' x '.join(map(str, shape or ()))}"
            )
    return Adapter(path, next(rank for rank in _RANKS if rank >= max(ranks)))


def _ranks(path: Path) -> set[int]:
    settings = read_json(path, "--adapter wants the directory of a LoRA adapter, as PEFT's save_pretrained writes it")
    match settings:
        case {"peft_type": "LORA", "r": int() as rank}:
            return {rank, *(settings.get("rank_pattern") or {}).values()}
        case _:
            raise ModelUnusable(f"{path} describes no LoRA adapter (`peft_type` LORA, a rank `r`): {_MERGE}")


def _layers(weights: Path) -> dict[str, dict[str, Shape]]:
    """The shapes of A and B of every adapted layer."""
    layers: dict[str, dict[str, Shape]] = {}
    for name, shape in _shapes(weights).items():
        found = _TENSOR.fullmatch(name)
        if found is None or found["layer"].rpartition(".")[2] in _ENDS:
            raise ModelUnusable(
                f"{weights} holds {name}: of an adapter only LoRA matrices of the linear layers between embeddings and "
                f"head are served; {_MERGE}"
            )
        layers.setdefault(found["layer"], {})[found["part"]] = shape
    if not layers:
        raise ModelUnusable(f"{weights} adapts nothing; save the adapter anew")
    return layers


def _shapes(path: Path) -> dict[str, Shape]:
    """Of every tensor, from the file's header."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelUnusable(f"{path} is not a safetensors file: {error}") from None
