"""What is running: hashes of weights, tokenizer and chat template, and whether the model can be served at all."""

import hashlib
import json
from pathlib import Path
from typing import Any

from demur.decision.rowhash import training_rows
from demur.server.engines.base import ModelIdentity

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class ModelUnusable(Exception):
    """The model cannot be served; the message says why and what would help."""


def model_directory(model: str) -> Path:
    """The local directory of `model`: a path, or a hub id that is downloaded. Raises `ModelUnusable`."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelUnusable(f"{model!r} is not a directory, nor a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise ModelUnusable(f"{model!r} is not a directory, and the hub did not give it: {error}") from error


def model_config(directory: Path) -> dict[str, Any]:
    """The model's config.json. Raises `ModelUnusable` where it is missing or broken."""
    return read_json(directory / "config.json", "--model wants a Hugging Face model directory")


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """A file with a JSON object. Raises `ModelUnusable` where it is broken or, saying what is `wanted`, missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelUnusable(f"{path} is missing: {wanted}") from None
    except ValueError as error:
        raise ModelUnusable(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelUnusable(f"{path} is not a JSON object")
    return value


def usual_context(config: dict[str, Any]) -> int:
    """Tokens of context on a CPU unless told otherwise, by a model's config."""
    text = config.get("text_config") or config
    longest: int = text.get("max_position_embeddings") or text.get("n_positions") or 4096
    return min(longest, 8192)


def check_servable(directory: Path, *, cpu: bool) -> dict[str, Any]:
    """Refuses what vLLM would only fail on minutes later, or silently. Returns the config."""
    config = model_config(directory)
    architectures = config.get("architectures") or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures):
        raise ModelUnusable(
            f"{directory.name} is {', '.join(architectures) or 'of no named architecture'}: Demur reads next-token "
            "probabilities, so it needs a causal language model (an architecture that ends in ForCausalLM)"
        )
    if not any(directory.glob("*.safetensors")) and not any(directory.glob("*.bin")):
        raise ModelUnusable(f"{directory} holds no weights (*.safetensors)")
    if not (directory / "tokenizer.json").is_file():
        raise ModelUnusable(
            f"{directory} has no tokenizer.json: Demur needs a fast tokenizer, to keep control tokens out of user text "
            "(convert it with transformers' AutoTokenizer and save_pretrained)"
        )
    text = config.get("text_config") or config
    heads = text.get("num_attention_heads") or text.get("n_head")
    hidden = text.get("hidden_size") or text.get("n_embd")
    head_size = text.get("head_dim") or (hidden // heads if heads and hidden else None)
    if cpu and head_size is not None and head_size < 32:
        raise ModelUnusable(f"its attention heads have size {head_size}; vLLM on a CPU needs 32 or more")
    return config


def identify(
    directory: Path,
    *,
    name: str | None,
    engine: str,
    max_model_len: int,
    chat_template: str,
    adapter: Path | None = None,
    dtype: str = "float32",
) -> ModelIdentity:
    """Hashes the model's files, and with an adapter its own too. Reads all weights once (about 1 s per GB).

    `dtype` is the number format in which they are served, part of what `weights` stands for.
    """
    weights = [*sorted(directory.glob("*.safetensors")), directory / "config.json"]
    if len(weights) == 1:
        weights = [*sorted(directory.glob("*.bin")), directory / "config.json"]
    trained_on = training_rows(directory)
    if adapter is not None:
        weights += [adapter / ADAPTER_CONFIG, adapter / ADAPTER_WEIGHTS]
        trained_on |= training_rows(adapter)
    return ModelIdentity(
        name=name or directory.name,
        weights=served_as(_hash_files(weights), dtype),
        tokenizer=_hash_files([path for file in _TOKENIZER_FILES if (path := directory / file).is_file()]),
        chat_template=hashlib.sha256(chat_template.encode()).hexdigest(),
        engine=engine,
        max_model_len=max_model_len,
        trained_on=trained_on,
    )


def served_as(weights: str, dtype: str) -> str:
    """The hash of weights served in a number format: that of the files for float32, another one for each other."""
    return weights if dtype == "float32" else hashlib.sha256(f"{weights} {dtype}".encode()).hexdigest()


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256")
        digest.update(f"{path.name}:{inner.hexdigest()}\n".encode())
    return digest.hexdigest()
