"""The words that the model reads around a question, and how options are listed."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers.normalizers import NFC

from demur.decision.question import Option, Question
from demur.decision.task import PromptLayout, ReadoutKind

#: Default instruction behind the input, per readout.
INSTRUCTIONS = {
    ReadoutKind.LETTER: "Answer with the letter of one option.",
    ReadoutKind.TEXT: "Answer with the name of one option.",
}

#: Default words that the answer starts with; the label follows.
ANSWER_PREFIX = "Answer:"

#: Words that open a thought where the tokenizer has no markers for one.
UNMARKED_THOUGHT = "Let's think step by step."

#: The input of a prior reading: nothing to decide on.
CONTENT_FREE_INPUT = "N/A"

# Python's own takes the square of a run of combining marks: minutes for a name that a body has room for.
_NFC = NFC()


@dataclass(frozen=True, slots=True)
class Words:
    """Users' text of one prompt, all to be tokenized as plain text: `before` the input and `after` it."""

    before: str
    after: str


def one_line(text: str) -> str:
    """The text on one line: every run of white space, line and paragraph separators becomes one space.

    What the model reads of a name or description; nobody can forge a line of the list with it. Answers carry the
    name as it was given.
    """
    return " ".join("".join(" " if _is_break(char) else char for char in text).split())


def name_key(name: str) -> str:
    """What names that read alike have in common, however their characters are composed (NFC) and spaced."""
    return one_line(_NFC.normalize_str(name))


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: spaces, but also zero-width and control characters."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def _is_break(char: str) -> bool:
    return char < " " or "\x7f" <= char <= "\x9f"


def words(
    question: Question, layout: PromptLayout, kind: ReadoutKind, codes: Sequence[str], *, unmarked_thought: bool = False
) -> Words:
    """The words around the input. `codes`: the K letters of a letter readout; not used for text."""
    listed = "\n".join(_listed(kind, index, option, codes) for index, option in enumerate(question.options))
    before = f"{question.text.strip()}\n\nOptions:\n{listed}\n\n{layout.input_title}:\n"
    instruction = INSTRUCTIONS[kind] if layout.instruction is None else layout.instruction.strip()
    if unmarked_thought:
        instruction = f"Think step by step, then answer. {instruction}".strip()
    return Words(before, f"\n\n{instruction}" if instruction else "")


def _listed(kind: ReadoutKind, index: int, option: Option, codes: Sequence[str]) -> str:
    mark = f"{codes[index]})" if kind is ReadoutKind.LETTER else "-"
    text = f"{mark} {one_line(option.name)}"
    return f"{text}: {one_line(option.description)}" if option.description else text
