"""A vLLM general plugin: lets one request read the log-probabilities of up to 256 token ids.

vLLM loads entry points of the group `vllm.general_plugins` in every process it starts, so the limit is also raised in
the GPU workers, which size a buffer by it. The CPU's V1 runner has no limit of its own.
"""

import os
import sys

#: Its name among the entry points.
NAME = "demur_wide_readouts"
LABEL_LIMIT = 256


def is_loaded() -> bool:
    """Whether vLLM's processes load it: where `VLLM_PLUGINS` lists plugins, they load no others."""
    listed = os.environ.get("VLLM_PLUGINS")
    return listed is None or NAME in listed.split(",")


def raise_label_limit() -> None:
    """Raises `MAX_LOGPROB_TOKEN_IDS`; idempotent, never lowers."""
    import vllm.sampling_params as sampling_params

    limit = max(LABEL_LIMIT, sampling_params.MAX_LOGPROB_TOKEN_IDS)
    sampling_params.MAX_LOGPROB_TOKEN_IDS = limit
    gpu_sampler = sys.modules.get("vllm.v1.worker.gpu.sample.logprob")
    if gpu_sampler is not None:  # it copied the number when it was imported
        gpu_sampler.MAX_LOGPROB_TOKEN_IDS = limit  # type: ignore[attr-defined]
