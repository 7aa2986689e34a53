"""What can go wrong in the kernel, in one tree; the server maps each to an answer of its own.

DecisionError (a ValueError)
├── UnusableModelError    tokenizer or chat template cannot be used; nothing was asked wrongly
├── LabelError            the options cannot be told apart as labels of this tokenizer
├── InputTooLongError     the input leaves no room in the context
└── TaskFileError         task files are wrong; every fault with file and line (decision/taskfile.py)
"""


class DecisionError(ValueError):
    """Base. The message says what is wrong and what to do about it, and never quotes an input."""


class UnusableModelError(DecisionError):
    """The model's tokenizer or chat template cannot be used, and why."""


class LabelError(DecisionError):
    """Two options have the same label tokens, or one has none. `options`: indices of the options concerned."""

    def __init__(self, message: str, options: tuple[int, ...]) -> None:
        super().__init__(message)
        self.options = options


class InputTooLongError(DecisionError):
    """The input has `tokens` tokens and the context has room for `allowed`."""

    def __init__(self, tokens: int, allowed: int) -> None:
        super().__init__(f"the input has {tokens} tokens; {max(allowed, 0)} fit beside the question and its options")
        self.tokens = tokens
        self.allowed = max(allowed, 0)
