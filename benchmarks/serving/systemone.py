"""Against vLLM's own `/v1/systemone`: the same questions, the same engine settings, a model that both can serve."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.serving import questions, servers
from benchmarks.serving.load import drive
from benchmarks.serving.models import random_qwen3
from benchmarks.serving.report import Row, faster
from benchmarks.serving.rounds import in_turn
from benchmarks.serving.tasks import TASK, bank

_MODEL = "qwen3"
_SECONDS = 6.0
_MANY = 16
#: More bodies than either server answers in a round.
_BODIES = {1: 400, _MANY: 1200}

Bodies = Callable[[str, int], list[dict[str, Any]]]


def run() -> Sequence[Row]:
    """Rates with 16 callers and with one, for a registered task and for questions that nobody registered."""
    model = random_qwen3()
    with (
        servers.demur(model, bank(), name="systemone-demur") as ours,
        servers.vllm(model, _MODEL, name="systemone-vllm") as theirs,
    ):

        def compare(callers: int, mine: tuple[str, Bodies], other: Bodies) -> tuple[list[float], list[float]]:
            def rate(number: int, server: servers.Server, path: str, bodies: Bodies) -> float:
                asked = bodies(f"{callers}/{number}", _BODIES[callers])
                return drive(server.port, path, asked, callers=callers, seconds=_SECONDS).rate

            first, second = in_turn([lambda n: rate(n, ours, *mine), lambda n: rate(n, theirs, "/v1/systemone", other)])
            return first, second

        registered = ("/decide", _registered)
        many = compare(_MANY, registered, _same_question)
        one = compare(1, registered, _same_question)
        other = compare(_MANY, ("/v1/systemone", _ad_hoc(ours_name(model))), _ad_hoc(_MODEL))
        return [
            faster("registered task, 26 options, 16 callers, against vLLM /v1/systemone", *many, at_least=6),
            faster("the same, one caller", *one, at_least=4),
            faster("ad hoc questions of 26 options, 16 callers, against the same", *other, at_least=0.95),
            Row(
                what="start-up, `demur serve` against vLLM's server",
                unit="s",
                ours=ours.start_seconds,
                theirs=theirs.start_seconds,
            ),
            Row(
                what="resident memory after this, all processes",
                unit="MB",
                ours=ours.resident_mb(),
                theirs=theirs.resident_mb(),
            ),
        ]


def ours_name(model: Any) -> str:
    """The name that our server gives a model."""
    return str(model.name)


def _registered(seed: str, n: int) -> list[dict[str, Any]]:
    return [questions.decide(TASK, text) for text in questions.inputs(seed, n)]


def _same_question(seed: str, n: int) -> list[dict[str, Any]]:
    asked = questions.inputs(seed, n)
    return [questions.systemone(_MODEL, questions.QUESTION, questions.OPTIONS, text) for text in asked]


def _ad_hoc(model: str) -> Bodies:
    def bodies(seed: str, n: int) -> list[dict[str, Any]]:
        asked = zip(questions.ad_hoc(seed, n), questions.inputs(seed, n), strict=True)
        return [questions.systemone(model, question, options, text) for (question, options), text in asked]

    return bodies
