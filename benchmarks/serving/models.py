"""A Qwen3 of the demo model's shape with random weights: vLLM's own endpoint does not serve the demo's architecture."""

import shutil
from pathlib import Path

from benchmarks.serving.servers import CACHE

DEMO = Path("models/demo")


def random_qwen3() -> Path:
    """Its directory; built on the first call (half a minute, 540 MB), with the demo model's tokenizer."""
    target = CACHE / "qwen3-135m"
    if (target / "model.safetensors").is_file():
        return target
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    config = Qwen3Config(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    staging = target.with_suffix(".new")
    shutil.rmtree(staging, ignore_errors=True)
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    staging.rename(target)
    return target
