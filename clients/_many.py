"""Many inputs as a stream of batches: what both clients share of `decide_many`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from demur.clients._answers import Item
from demur.clients._calls import JsonInput, encode
from demur.clients._errors import (
    ConnectionFailed,
    DemurClientError,
    Overloaded,
    ServerError,
    Timeout,
    TooLarge,
    Unavailable,
)

#: Bytes of inputs in a batch, unless one alone has more: half of what a server takes in one body by default.
_MAX_BYTES = 2**20

#: What may befall one batch and spare the next. Any other error would meet every batch, so it ends the stream.
_PASSING = (ConnectionFailed, Timeout, Overloaded, Unavailable, ServerError)


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive inputs, and the position of the first."""

    start: int
    values: list[JsonInput]

    def outcomes(self, items: list[Item]) -> list[Item]:
        """The items of the batch's answer, at their positions in the stream."""
        return [replace(item, index=self.start + item.index) for item in items]

    def failures(self, error: DemurClientError) -> list[Item]:
        """The batch's error as the outcome of each input; raised where it would meet every batch."""
        one_too_large = isinstance(error, TooLarge) and len(self.values) == 1
        if not isinstance(error, _PASSING) and not one_too_large:
            raise error
        return [Item(self.start + offset, error=error) for offset in range(len(self.values))]


def batches(inputs: Iterable[JsonInput], size: int, concurrency: int) -> Iterator[Batch]:
    """Inputs in batches of `size`, fewer where they are long, read only as far as asked. Checks both limits at once."""
    if size < 1 or concurrency < 1:
        raise ValueError("batch_size and concurrency must be at least 1")
    if isinstance(inputs, str):
        raise TypeError("inputs must be an iterable of inputs, not one string")
    return _filled(inputs, size)


def _filled(inputs: Iterable[JsonInput], size: int) -> Iterator[Batch]:
    values: list[JsonInput] = []
    start = taken = 0
    for value in inputs:
        weight = len(encode({"input": value}))
        if values and taken + weight > _MAX_BYTES:
            yield Batch(start, values)
            start, values, taken = start + len(values), [], 0
        values.append(value)
        taken += weight
        if len(values) == size:
            yield Batch(start, values)
            start, values, taken = start + len(values), [], 0
    if values:
        yield Batch(start, values)
