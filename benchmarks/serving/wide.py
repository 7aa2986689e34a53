"""255 options against 26 in prompts of equal length: what reading more labels costs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.serving import questions, servers
from benchmarks.serving.load import drive
from benchmarks.serving.models import DEMO
from benchmarks.serving.report import Row, paired
from benchmarks.serving.rounds import in_turn
from benchmarks.serving.tasks import task_directory

_WIDE, _NARROW = "wide", "narrow"
_SECONDS = 5.0
_BODIES = 400
#: One token behind a word, in the demo model's vocabulary.
_FILLER = " word"


def run() -> Sequence[Row]:
    """Median time of one caller's request, prefix cached, everything in one engine request."""
    with servers.demur(DEMO, _tasks(), name="wide-demur") as server:
        lengths: dict[str, float] = {}

        def milliseconds(number: int, task: str) -> float:
            bodies = [questions.decide(task, text) for text in questions.inputs(f"wide/{number}", _BODIES)]
            burst = drive(server.port, "/decide", bodies, callers=1, seconds=_SECONDS)
            usage = [answer["usage"] for answer in burst.answers]
            assert all(one["reads"] == 1 and one["cached_tokens"] for one in usage)
            lengths[task] = median(one["prompt_tokens"] for one in usage)
            return 1e3 * median(burst.latencies)

        wide, narrow = in_turn([lambda n: milliseconds(n, _WIDE), lambda n: milliseconds(n, _NARROW)])
    what = f"255 options against 26, one caller, prompts of {lengths[_WIDE]:.0f} and {lengths[_NARROW]:.0f} tokens"
    return [paired(what, "ms", wide, narrow, at_most=1.3)]


def _tasks() -> Path:
    """Both tasks; the narrow one's descriptions are as long as it takes for prompts of equal length."""
    from transformers import AutoTokenizer

    from demur.decision.prompt import PromptBuilder
    from demur.decision.question import Option, Question
    from demur.decision.task import DecisionSpec

    builder = PromptBuilder(AutoTokenizer.from_pretrained(DEMO))

    def length(options: dict[str, str]) -> int:
        listed = tuple(Option(*pair) for pair in options.items())
        return builder.compile(DecisionSpec(Question(questions.QUESTION, listed))).fixed_tokens

    wide = {f"team number {number}": "" for number in range(1, 256)}
    target = length(wide)
    narrow = dict(questions.OPTIONS)
    each, rest = divmod(target - length(narrow), len(narrow))
    for index, name in enumerate(narrow):
        narrow[name] += _FILLER * (each + (index < rest))
    return task_directory("wide", {_WIDE: (questions.QUESTION, wide), _NARROW: (questions.QUESTION, narrow)})
