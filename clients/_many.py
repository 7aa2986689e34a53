"""Many inputs as a stream of batches: what both clients share of `decide_many`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from demur.clients._answers import Item
from demur.clients._calls import Ask, Call, JsonInput, decide_batch, encode
from demur.clients._errors import (
    ConnectionFailed,
    DemurClientError,
    Overloaded,
    Problem,
    ServerError,
    Timeout,
    TooLarge,
    Unavailable,
    error_for,
)

#: Bytes of inputs in a batch, unless one alone has more: half of what a server takes in one body by default.
_MAX_BYTES = 2**20

#: What may befall one batch and spare the next. Any other error would meet every batch, so it ends the stream.
_PASSING = (ConnectionFailed, Timeout, Overloaded, Unavailable, ServerError)


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive inputs, and the position of the first.

    error : why it is not sent: its one input is nothing that JSON can say, or the inputs ended in an error here.
    """

    start: int
    values: list[JsonInput]
    error: Exception | None = None

    def call(self, ask: Ask) -> Call[list[Item]]:
        """The request. Raises the batch's error where it has one."""
        if self.error is not None:
            raise self.error
        return decide_batch(self.values, ask)

    def outcomes(self, items: list[Item]) -> list[Item]:
        """The items of the batch's answer, at their positions in the stream."""
        return [replace(item, index=self.start + item.index) for item in items]

    def failures(self, error: DemurClientError) -> list[Item]:
        """The batch's error as the outcome of each input; raised where it would meet every batch."""
        one_too_large = isinstance(error, TooLarge) and len(self.values) == 1
        spares_the_next = bool(self.values) if error is self.error else isinstance(error, _PASSING) or one_too_large
        if not spares_the_next:
            raise error
        return [Item(self.start + offset, error=error) for offset in range(len(self.values))]


def batches(inputs: Iterable[JsonInput], size: int, concurrency: int) -> Iterator[Batch]:
    """Inputs in batches of `size`, fewer where they are long, read only as far as asked. Checks both limits at once.

    Where `inputs` raises, the batch after the last carries that error, so that it is met in its turn.
    """
    if size < 1 or concurrency < 1:
        raise ValueError("batch_size and concurrency must be at least 1")
    if isinstance(inputs, str):
        raise TypeError("inputs must be an iterable of inputs, not one string")
    return _filled(inputs, size)


def _filled(inputs: Iterable[JsonInput], size: int) -> Iterator[Batch]:
    values: list[JsonInput] = []
    start = taken = 0
    try:
        for value in inputs:
            weight, error = _weigh(value)
            if values and (error is not None or taken + weight > _MAX_BYTES):
                yield Batch(start, values)
                start, values, taken = start + len(values), [], 0
            values.append(value)
            taken += weight
            if error is not None or len(values) == size:
                yield Batch(start, values, error)
                start, values, taken = start + len(values), [], 0
    except Exception as failure:
        if values:
            yield Batch(start, values)
        yield Batch(start + len(values), [], failure)
        return
    if values:
        yield Batch(start, values)


def _weigh(value: JsonInput) -> tuple[int, DemurClientError | None]:
    """Bytes of an input, or what a server would say of text and numbers that JSON cannot hold. Raises TypeError."""
    try:
        return len(encode({"input": value})), None
    except ValueError as error:
        return 0, error_for(Problem(400, "malformed_body", "Malformed body", str(error)))
