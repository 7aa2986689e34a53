"""Against typed-gguf (PyPI), which reads decisions from the same model's GGUF with llama.cpp.

It lives in an environment of its own, which takes ten minutes to make, with gcc and cmake, since its llama.cpp comes
from the source package of llama-cpp-python:

    python -m benchmarks.serving.typed_gguf
"""

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from benchmarks.serving import questions, servers
from benchmarks.serving.load import drive
from benchmarks.serving.models import DEMO
from benchmarks.serving.report import Row, faster
from benchmarks.serving.rounds import in_turn
from benchmarks.serving.tasks import bank
from demur.server.demo_model import gguf_path

_PACKAGES = ("typed-gguf==0.3.0", "llama-cpp-python==0.3.36")
_ENVIRONMENT = servers.CACHE / "typed-gguf"
_PYTHON = _ENVIRONMENT / "bin/python"
_DONE = _ENVIRONMENT / "done"
_REGISTER = (
    "import sys; from typed_gguf.registry import store; "
    "registry = store.Registry(); "
    "store.add_entry(registry, store.Entry.from_dict({'alias': 'demo', 'path': sys.argv[1]})); "
    "store.save_registry(registry)"
)

_QUESTION = "What does the customer write about?"
_OPTIONS = {
    "billing": "charges, refunds, invoices",
    "delivery": "parcels, tracking, damage",
    "account": "login, password, personal data",
}
_SECONDS = 5.0
_BODIES = 500


def run() -> Sequence[Row]:
    """The median time of a choice of three options, one caller, the same body to both servers' `/v1/systemone`."""
    if not _DONE.exists():
        print("typed-gguf: skipped; to enable it: .venv/bin/python -m benchmarks.serving.typed_gguf", file=sys.stderr)
        return []
    with servers.demur(DEMO, bank(), name="typed-demur") as ours, _typed_gguf() as theirs:

        def rate(number: int, port: int, model: str) -> float:
            texts = questions.inputs(f"three/{number}", _BODIES)
            bodies: list[Any] = [questions.systemone(model, _QUESTION, _OPTIONS, text) for text in texts]
            return 1 / median(drive(port, "/v1/systemone", bodies, callers=1, seconds=_SECONDS).latencies)

        mine, other = in_turn([lambda n: rate(n, ours.port, DEMO.name), lambda n: rate(n, theirs, "demo")])
    what = "choice of 3 options, one caller, against typed-gguf 0.3.0 (1 / median time)"
    return [faster(what, mine, other, at_least=3)]


def set_up() -> None:
    """Makes the environment: both packages, llama.cpp compiled for this machine."""
    venv.create(_ENVIRONMENT, with_pip=True)
    pip = [str(_PYTHON), "-m", "pip", "install", "--no-binary", "llama-cpp-python", "--no-deps"]
    subprocess.run([*pip, *_PACKAGES], check=True)
    _DONE.touch()


@contextmanager
def _typed_gguf() -> Iterator[int]:
    """Its server's port. The model stays loaded in a process of its own, which is ended at the end."""
    environment = {
        **os.environ,
        "TYPED_GGUF_HOME": str((servers.CACHE / "typed-gguf-home").absolute()),
        "TYPED_GGUF_RUNTIME_DIR": str(next(_ENVIRONMENT.glob("lib/python*/site-packages/llama_cpp/lib")).absolute()),
    }
    subprocess.run([str(_PYTHON), "-c", _REGISTER, str(gguf_path())], env=environment, check=True)
    command = [str(_PYTHON), "-m", "typed_gguf"]
    try:
        serve = [*command, "serve", "--port", "{port}"]
        with servers.running(serve, "typed-gguf", ready="/health", more=environment) as server:
            yield server.port
    finally:
        subprocess.run([*command, "keep", "stop"], env=environment, check=False, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    set_up()
