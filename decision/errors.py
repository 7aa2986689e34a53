"""What can go wrong in the kernel, in one tree; the server maps each to an answer of its own.

DecisionError (a ValueError)
├── UnusableModelError    tokenizer or chat template cannot be used; nothing was asked wrongly
├── LabelError            the options cannot be told apart as labels of this tokenizer
├── InputTooLongError     the input leaves no room in the context
├── BundleError           a bundle cannot be read or written
├── DataFileError         a file of labelled rows is wrong; file, line and value
└── TaskFileError         task files are wrong; every fault with file and line
"""

from collections.abc import Iterable
from dataclasses import dataclass


class DecisionError(ValueError):
    """Base. The message says what is wrong and what to do about it, and never quotes an input."""


class UnusableModelError(DecisionError):
    """The model's tokenizer or chat template cannot be used, and why."""


class LabelError(DecisionError):
    """Two options have the same label tokens, or one has none. `options`: indices of those concerned, `task`: whose."""

    def __init__(self, message: str, options: tuple[int, ...], *, task: str | None = None) -> None:
        super().__init__(message)
        self.options = options
        self.task = task


class BundleError(DecisionError):
    """A bundle cannot be read or written; the message names the file."""


class DataFileError(DecisionError):
    """Labelled rows cannot be used; the message names file, line and value, a line for each fault."""


class InputTooLongError(DecisionError):
    """The input has `tokens` tokens and the context has room for `allowed`."""

    def __init__(self, tokens: int, allowed: int) -> None:
        super().__init__(f"the input has {tokens} tokens; {max(allowed, 0)} fit beside the question and its options")
        self.tokens = tokens
        self.allowed = max(allowed, 0)


@dataclass(frozen=True, slots=True, order=True)
class TaskFault:
    """One thing wrong with a task file: where, what, and what to do about it. `line` counts from 1."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class TaskFileError(DecisionError):
    """Task files are wrong. `faults`: all of them, by file and line; the message has a line for each."""

    def __init__(self, faults: Iterable[TaskFault]) -> None:
        self.faults = tuple(sorted(faults))
        super().__init__("\n".join(str(fault) for fault in self.faults))
