"""Prompts as token ids: built once for a question, finished for every input.

    [template] question, options, title | input | instruction [template] answer prefix -> labels are read here

All before the input is the same for every request of a task, so the engine's prefix cache skips it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from demur.decision.errors import InputTooLongError
from demur.decision.labels import LabelPlan, continuation, letter_codes, plan_labels
from demur.decision.plaintext import PlainTokenizer
from demur.decision.question import MAX_OPTIONS
from demur.decision.task import DecisionSpec, Mode, ReadoutKind, Truncation
from demur.decision.template import THINK_MARKERS, ChatTemplate, Frame
from demur.decision.wording import ANSWER_PREFIX, CONTENT_FREE_INPUT, UNMARKED_THOUGHT, one_line, words


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to be read, and the salt that separates prefix caches of different callers."""

    ids: tuple[int, ...]
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt with its input: `ids`, whether the input was cut, and how many of its tokens are in."""

    ids: tuple[int, ...]
    truncated: bool
    input_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class CompiledPrompt:
    """A prompt without its input, and the labels to be read behind it.

    Attributes
    ----------
    head, tail : token ids before and after the input; in reasoned mode the tail ends where the thought starts.
    after_thought : ids to append to a thought so that the labels can be read; empty in direct mode.
    stop_ids : ids that end a thought; the generation does not hold them.
    plan : what to read and how to combine it; `plan.kind` is the readout used, `plan.note` says why it is another one.
    """

    spec: DecisionSpec
    head: tuple[int, ...]
    tail: tuple[int, ...]
    after_thought: tuple[int, ...]
    stop_ids: tuple[int, ...]
    plan: LabelPlan
    _text: PlainTokenizer

    @property
    def reserved(self) -> int:
        """Tokens that a decision needs besides prompt and input: thought, its close, label suffix, the one read."""
        thought = self.spec.thought.max_tokens if self.spec.mode is Mode.REASONED else 0
        return thought + len(self.after_thought) + self.plan.depth + 1

    @property
    def fixed_tokens(self) -> int:
        """Tokens of the context that no input can use."""
        return len(self.head) + len(self.tail) + self.reserved

    @property
    def least_tokens(self) -> int:
        """Tokens of context that it takes to decide at all: those that are fixed, and the content-free input."""
        return self.fixed_tokens + len(self._text.encode(CONTENT_FREE_INPUT))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that determines the reads but the input; for pinning."""
        parts = [self.head, self.tail, self.after_thought, self.plan.sequences, self.plan.length]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def render(self, input_text: str, max_tokens: int) -> RenderedPrompt:
        """The prompt with its input, within `max_tokens` of context, `reserved` included.

        Raises InputTooLongError, unless the spec asks for truncation and at least one token of the input fits.
        """
        ids = self._text.encode(input_text)
        allowed = max_tokens - self.fixed_tokens
        if self.spec.max_input_tokens is not None:
            allowed = min(allowed, self.spec.max_input_tokens)
        truncated = len(ids) > allowed
        if truncated:
            if allowed < 1 or self.spec.truncation is Truncation.REFUSE:
                raise InputTooLongError(len(ids), allowed)
            ids = ids[:allowed] if self.spec.truncation is Truncation.HEAD else ids[-allowed:]
        return RenderedPrompt((*self.head, *ids, *self.tail), truncated, len(ids))

    def render_content_free(self) -> tuple[int, ...]:
        """Ids behind which a plan with `needs_prior` reads its prior: no input to speak of, and no thought."""
        return (*self.head, *self._text.encode(CONTENT_FREE_INPUT), *self.tail, *self.after_thought)

    def close_thought(self, prompt_ids: Sequence[int], thought_ids: Sequence[int]) -> tuple[int, ...]:
        """Ids behind which the labels are read after a thought, complete or cut."""
        return (*prompt_ids, *thought_ids, *self.after_thought)


class PromptBuilder:
    """Compiles specs for one tokenizer. Thread-safe; the tokenizer is only read.

    Raises UnusableModelError when the tokenizer is not a fast one or its chat template cannot be used.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.text = PlainTokenizer(tokenizer)
        self.template = ChatTemplate(tokenizer, self.text)
        self._codes = lru_cache(maxsize=64)(self._find_codes)
        newline = self.encode("\n")
        self._terminators = (*self.template.end_ids[:1], *(newline if len(newline) == 1 else ()))

    def encode(self, text: str) -> list[int]:
        """Token ids of users' text; see PlainTokenizer.encode."""
        return self.text.encode(text)

    def compile(self, spec: DecisionSpec) -> CompiledPrompt:
        """Does once what does not depend on the input.

        Raises LabelError when options collide as labels, UnusableModelError when the template refuses the layout.
        """
        answer = ANSWER_PREFIX if spec.layout.answer_prefix is None else spec.layout.answer_prefix
        plan, context, codes = self._plan(spec, answer)
        thinks = spec.mode is Mode.REASONED
        frame = self.template.frame(
            system=spec.layout.system is not None, thinking=thinks and spec.thought.markers is not False
        )
        unmarked = thinks and frame.closing is None and not spec.thought.markers
        text = words(spec.question, spec.layout, plan.kind, codes, unmarked_thought=unmarked)
        head = [*frame.before]
        if frame.between is not None:
            head += [*self.encode(frame.leads[0] + (spec.layout.system or "").strip()), *frame.between]
        tail = (*self.encode(text.after), *frame.after)
        answer_ids = tuple(self.encode(context))
        if thinks:
            opening, closing = self._thought(frame, unmarked=unmarked)
            tail, answer_ids = (*tail, *opening), (*closing, *answer_ids)
        return CompiledPrompt(
            spec=spec,
            head=(*head, *self.encode(frame.leads[1] + text.before)),
            tail=tail if thinks else (*tail, *answer_ids),
            after_thought=answer_ids if thinks else (),
            stop_ids=self._stop_ids(frame) if thinks else (),
            plan=plan,
            _text=self.text,
        )

    def _plan(self, spec: DecisionSpec, answer: str) -> tuple[LabelPlan, str, tuple[str, ...]]:
        """The plan, the words behind which its labels stand, and the letter codes (none for a text readout)."""
        options = spec.question.options
        note = None
        if spec.readout.kind is ReadoutKind.LETTER:
            found = self._codes(answer)
            context, codes = next((way for way in found if len(way[1]) >= len(options)), found[0])
            if len(codes) >= len(options):
                letters, ids = zip(*codes[: len(options)], strict=True)
                plan = plan_labels(ReadoutKind.LETTER, letters, [(token,) for token in ids], length=spec.readout.length)
                return plan, context, letters
            note = (
                f"the options' names are read: this tokenizer has {max(len(way[1]) for way in found)} letter codes of "
                f"one token each, fewer than the {len(options)} options"
            )
        context, separator = split_answer(answer)
        labels = [one_line(option.name) for option in options]
        plan = plan_labels(
            ReadoutKind.TEXT,
            labels,
            [continuation(self.encode, context, separator + label) for label in labels],
            self._terminators,
            length=spec.readout.length,
            note=note,
        )
        return plan, context, ()

    def _find_codes(self, answer: str) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
        """Ways to set letters behind the answer prefix, best first: the words before them, and the codes.

        The space belongs to the letter, unless the tokenizer writes it apart: then it belongs to the words.
        """
        context, separator = split_answer(answer)
        found = [(context, tuple(letter_codes(self.encode, context, separator)))]
        if separator and len(found[0][1]) < MAX_OPTIONS:
            found.append((context + separator, tuple(letter_codes(self.encode, context + separator, ""))))
        return found

    def _thought(self, frame: Frame, *, unmarked: bool) -> tuple[list[int], list[int]]:
        """What opens a thought behind the frame, and what closes it."""
        if unmarked:
            return self.encode(UNMARKED_THOUGHT), self.encode("\n\n")
        if frame.closing is not None:
            return [], self.text.control(f"\n{frame.closing}\n\n")
        opening, closing = THINK_MARKERS[0]
        return self.encode(f"{opening}\n"), self.encode(f"\n{closing}\n\n")

    def _stop_ids(self, frame: Frame) -> tuple[int, ...]:
        closing = self.text.id_of(frame.closing) if frame.closing else None
        return (*(() if closing is None else (closing,)), *self.template.end_ids)


def split_answer(answer: str) -> tuple[str, str]:
    """The answer prefix without its last spaces, and what stands between it and the label.

    Tokenizers write a space as the beginning of the next word, so it belongs to the label.
    """
    context = answer.rstrip(" ")
    return context, " " if context and not context[-1].isspace() else ""
