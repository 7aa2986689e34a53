"""The model's chat template as frames of token ids around users' text.

A template is rendered with sentinels where users' text belongs and split at them, so what users write never passes
through the template or its tokenization. There are four frames at most (with or without a system message, thinking or
not); each is rendered once.
"""

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from demur.decision.errors import UnusableModelError
from demur.decision.plaintext import PlainTokenizer

#: Templates that print today's date would change the prompt, and miss the cache, every midnight.
FROZEN_DATE = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)

#: Pairs of markers around a thought, as models in use write them.
THINK_MARKERS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))

_SYSTEM = "QsystemtextofthecallerQ"
_USER = "QusertextofthecallerQ"
_REPLY = "QreplyofthemodelQ"


@dataclass(frozen=True, slots=True)
class Frame:
    """Token ids around users' text: `before` [system text, `between`] user text `after`, where the answer starts.

    `between` is None in a frame without a system message. `leads`: what the template writes right before the system
    text ("" without one) and the user text, "" or " "; it is tokenized as the space of the text's first word.
    `closing`: the marker that closes the thought in which the frame ends, None where it ends outside of one.
    """

    before: tuple[int, ...]
    between: tuple[int, ...] | None
    after: tuple[int, ...]
    leads: tuple[str, str] = ("", "")
    closing: str | None = None


class ChatTemplate:
    """Frames of a tokenizer's chat template, or of a plain layout where it has none.

    Attributes
    ----------
    think_markers : the pair of markers that the tokenizer has as tokens, or None.
    end_ids : ids that end the model's turn, most specific first; may be empty.
    plain : the tokenizer has no chat template.

    Raises
    ------
    UnusableModelError : the template fails on an ordinary message.
    """

    def __init__(self, tokenizer: Any, text: PlainTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self.plain = not tokenizer.chat_template
        self.think_markers: tuple[str, str] | None = None
        for markers in THINK_MARKERS:
            if all(text.id_of(marker) is not None for marker in markers):
                self.think_markers = markers
                break
        self.frame = lru_cache(maxsize=4)(self._frame)
        self.frame(system=False, thinking=False)
        eos = tokenizer.eos_token_id
        ends = (self._turn_end(), eos)
        self.end_ids = tuple(dict.fromkeys(token for token in ends if token is not None))

    def _frame(self, *, system: bool, thinking: bool) -> Frame:
        """The frame with or without a system message; `thinking`: it ends inside a thought, if there are markers.

        Raises UnusableModelError when the template refuses, drops or repeats a message.
        """
        if self.plain:
            blank = tuple(self._text.encode("\n\n"))
            tail, closing = self._thought("", thinking=thinking)
            after = blank + tuple(self._text.control(tail))
            return Frame(self._text.bos_ids, blank if system else None, after, closing=closing)
        try:
            pieces = self._pieces(system=system, thinking=thinking)
        except UnusableModelError as error:
            if system and self.frame(system=False, thinking=thinking):
                raise UnusableModelError(
                    f"{error}; without a system message it works, so move `layout.system` into the question"
                ) from error
            raise
        *openings, tail = pieces
        tail, closing = self._thought(tail, thinking=thinking)
        leads = [" " if piece.endswith(" ") else "" for piece in openings]
        ids = [
            tuple(self._text.control(piece.removesuffix(" "), first=index == 0)) for index, piece in enumerate(openings)
        ]
        return Frame(
            before=ids[0],
            between=ids[1] if system else None,
            after=tuple(self._text.control(tail)),
            leads=(leads[0] if system else "", leads[-1]),
            closing=closing,
        )

    def _pieces(self, *, system: bool, thinking: bool) -> list[str]:
        sentinels = [_SYSTEM, _USER] if system else [_USER]
        roles = ["system", "user"] if system else ["user"]
        messages = [{"role": role, "content": text} for role, text in zip(roles, sentinels, strict=True)]
        rest = self._render(messages, add_generation_prompt=True, enable_thinking=thinking)
        pieces = []
        for sentinel in sentinels:
            if rest.count(sentinel) != 1:
                role = roles[sentinels.index(sentinel)]
                raise UnusableModelError(f"the model's chat template does not render its {role} message exactly once")
            piece, rest = rest.split(sentinel)
            pieces.append(piece)
        return [*pieces, rest]

    def _render(self, messages: list[dict[str, str]], **options: Any) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                date_string=FROZEN_DATE.strftime("%d %b %Y"),
                strftime_now=FROZEN_DATE.strftime,
                **options,
            )
        except Exception as error:  # a template may raise anything; no user text is in it
            raise UnusableModelError(f"the model's chat template fails: {type(error).__name__}: {error}") from error
        return str(rendered)

    def _thought(self, tail: str, *, thinking: bool) -> tuple[str, str | None]:
        """The template's tail with its thought opened or closed, and the marker that closes it if it is open."""
        for opening, closing in THINK_MARKERS:
            if tail.rfind(opening) > tail.rfind(closing):
                return (tail, closing) if thinking else (f"{tail.rstrip()}\n\n{closing}\n\n", None)
        if thinking and self.think_markers:
            return f"{tail}{self.think_markers[0]}\n", self.think_markers[1]
        return tail, None

    def _turn_end(self) -> int | None:
        """The control token that the template puts behind a reply."""
        if self.plain:
            return None
        messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}]
        try:
            _, found, rest = self._render(messages, add_generation_prompt=False).partition(_REPLY)
        except UnusableModelError:
            return None
        ids = self._text.control(rest) if found else []
        return next((token for token in ids if token in self._text.added_ids), None)
