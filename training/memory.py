"""Memory that does not suffice, told as what to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from demur.training.errors import OutOfMemory


@contextmanager
def fitting(told: str) -> Iterator[None]:
    """Raises OutOfMemory(told) where memory ends. torch has an error of its own for that on GPUs only."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise OutOfMemory(told) from error
        raise


def too_large(size: int, rows: str, otherwise: str) -> str:
    """What to say of a micro-batch of `size` rows; `otherwise`: what helps where it cannot be smaller."""
    smaller = next((n for n in range(size - 1, 0, -1) if size % n == 0), None)
    hint = f"set optimiser.micro_batch={smaller}" if smaller else otherwise
    return f"a micro-batch of {size} {rows} does not fit into memory; {hint}"
