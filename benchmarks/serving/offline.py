"""The engine alone, in a process of its own: `LLM.generate` on token ids, one command a line on standard input.

A command is a seed and a number of prompts; the answer is the seconds that `generate` took for them.

    python -m benchmarks.serving.offline MODEL
"""

import json
import sys
import time
from typing import Any

from benchmarks.serving import questions, servers


def main(model: str) -> None:
    """Serves commands until standard input ends."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from demur.decision.prompt import PromptBuilder
    from demur.decision.question import Option, Question
    from demur.decision.task import DecisionSpec

    llm = LLM(
        model,
        enforce_eager=True,
        enable_prefix_caching=True,
        logprobs_mode="raw_logprobs",
        generation_config="vllm",
        max_model_len=servers.MAX_MODEL_LEN,
        **_settings(),
    )
    options = tuple(Option(*pair) for pair in questions.OPTIONS.items())
    prompt = PromptBuilder(llm.get_tokenizer()).compile(DecisionSpec(Question(questions.QUESTION, options)))
    (read,) = prompt.plan.reads
    sampling = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(read.ids),
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seed, count = json.loads(line)
        prompts: list[Any] = [
            {"prompt_token_ids": list(prompt.render(text, servers.MAX_MODEL_LEN).ids)}
            for text in questions.inputs(seed, count)
        ]
        start = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = [len(output.prompt_token_ids or ()) for output in outputs]
        print(json.dumps({"seconds": seconds, "tokens": sum(tokens)}), flush=True)


def _settings() -> dict[str, Any]:
    return dict(servers.ENGINE)


if __name__ == "__main__":
    main(sys.argv[1])
