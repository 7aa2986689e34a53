"""Against what people do instead: a chat completion whose JSON schema allows the options' names, with logprobs."""

import string
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.serving import questions, servers
from benchmarks.serving.load import drive
from benchmarks.serving.models import DEMO
from benchmarks.serving.report import Row, faster
from benchmarks.serving.rounds import in_turn
from benchmarks.serving.tasks import TASK, bank

_MODEL = "demo"
_SECONDS = 6.0
_CALLERS = 16
_BODIES = 1200


def run() -> Sequence[Row]:
    """Rates with the input before the question, as people write it, and behind it, where prefixes are cached."""
    with (
        servers.demur(DEMO, bank(), name="chat-demur") as ours,
        servers.vllm(DEMO, _MODEL, name="chat-vllm") as theirs,
    ):

        def rate(number: int, server: servers.Server, path: str, body: Any) -> float:
            asked = [body(text) for text in questions.inputs(f"chat/{number}", _BODIES)]
            return drive(server.port, path, asked, callers=_CALLERS, seconds=_SECONDS).rate

        mine, first, cached = in_turn(
            [
                lambda n: rate(n, ours, "/decide", partial(questions.decide, TASK)),
                lambda n: rate(n, theirs, "/v1/chat/completions", partial(_chat, input_first=True)),
                lambda n: rate(n, theirs, "/v1/chat/completions", partial(_chat, input_first=False)),
            ]
        )
    return [
        faster("registered task, 16 callers, against chat with a JSON schema, input first", mine, first, at_least=4),
        faster("the same, question first (cached prefix)", mine, cached, at_least=1.5),
    ]


def _chat(text: str, *, input_first: bool) -> dict[str, Any]:
    # The words of our own prompt: with the question first both arms have the same prefix, with the same blocks cached.
    options = zip(string.ascii_uppercase, questions.OPTIONS.items(), strict=True)
    listed = "\n".join(f"{letter}) {name}: {description}" for letter, (name, description) in options)
    asked = f"{questions.QUESTION}\n\nOptions:\n{listed}"
    message = f"Input:\n{text}"
    parts = [message, asked] if input_first else [asked, message]
    reply = 'Answer with JSON: {"decision": "<name of one option>"}'
    schema = {
        "type": "object",
        "properties": {"decision": {"enum": list(questions.OPTIONS)}},
        "required": ["decision"],
        "additionalProperties": False,
    }
    return {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "\n\n".join([*parts, reply])}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "decision", "schema": schema, "strict": True},
        },
        "temperature": 0,
        "max_tokens": 32,
        "logprobs": True,
        "top_logprobs": 5,
    }
