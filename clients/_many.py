"""Many inputs as a stream of batches: what both clients share of `decide_many`."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from demur.clients._answers import Item
from demur.clients._calls import JsonInput
from demur.clients._errors import ConnectionFailed, DemurClientError, Overloaded, ServerError, Timeout, Unavailable

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
        if not isinstance(error, _PASSING):
            raise error
        return [Item(self.start + offset, error=error) for offset in range(len(self.values))]


def batches(inputs: Iterable[JsonInput], size: int, concurrency: int) -> Iterator[Batch]:
    """Inputs in batches of `size`, read only as far as asked. Checks both limits at once."""
    if size < 1 or concurrency < 1:
        raise ValueError("batch_size and concurrency must be at least 1")
    if isinstance(inputs, str):
        raise TypeError("inputs must be an iterable of inputs, not one string")
    values = iter(inputs)
    filled = itertools.takewhile(bool, (list(itertools.islice(values, size)) for _ in itertools.count()))
    return (Batch(number * size, chunk) for number, chunk in enumerate(filled))
