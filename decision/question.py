"""What is asked: a question and the options that may be chosen."""

from dataclasses import dataclass

MIN_OPTIONS = 2
MAX_OPTIONS = 255


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that may be decided: a `name` (what the answer says) and, for the model, a `description`."""

    name: str
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question with 2 to 255 options, in the order in which the model reads them."""

    text: str
    options: tuple[Option, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The options' names, in order."""
        return tuple(option.name for option in self.options)
