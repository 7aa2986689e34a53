"""Where a completion decides: the position of its decision token, in free writing or behind a forced prefix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

#: A thought that has not ended.
_OPEN = -1
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Decision:
    """A completion's decision: `position` of its token in the completion, and the `option` that it names.

    `found`: how many times the answer prefix was followed by a label; the last one counts.
    """

    position: int
    option: int
    found: int = 1


def find_decision(
    completion: Sequence[int], sequences: Sequence[Sequence[int]], answer: str, decode: Decode
) -> Decision | None:
    """The last place where `answer` is followed by a whole label, None without one.

    A label that goes on as a longer word ("A" in "Apple") is none, nor is one without the prefix.
    """
    ends = set(range(len(completion)))
    places: list[tuple[int, int]] = []
    for position in sorted(ends):
        for option, sequence in enumerate(sequences):
            after = position + len(sequence)
            if tuple(completion[position:after]) != tuple(sequence):
                continue
            if not decode(completion[:position]).rstrip().endswith(answer):
                continue
            if _goes_on(decode(completion[position:after]), decode(completion[position : after + 1])):
                continue
            places.append((position, option))
    if not places:
        return None
    position, option = places[-1]
    return Decision(position, option, found=len(places))


def _goes_on(label: str, longer: str) -> bool:
    return longer[len(label) : len(label) + 1].isalnum()


class ForcedDecision:
    """A logits processor: a thought of at most `budget` tokens, then `after` token by token, a label, and the end.

    The thought ends with the probability that the model gives its stop ids, but none of them is written: the server
    does not hold them either. The label is drawn among `label_ids`, so that every rollout decides.

    Args:
        start: padded length of the prompts.
        budget: most tokens of a thought.
        after: B sequences that lead from a thought to a label.
        stop_ids: tokens that end a thought.
        label_ids: [B][K].
        end_id: ends a completion.
        temperature: of the sampling, which comes after this.
    """

    def __init__(
        self,
        start: int,
        budget: int,
        after: Sequence[Sequence[int]],
        stop_ids: Sequence[int],
        label_ids: Sequence[Sequence[int]],
        end_id: int,
        temperature: float = 1.0,
    ) -> None:
        self._start, self._budget, self._end, self._temperature = start, budget, end_id, temperature
        self._stop = list(dict.fromkeys(stop_ids))
        # Row by row: what leads to a label, then the labels, then the end; shorter rows repeat their last id.
        self._after_length = torch.tensor([len(row) for row in after])
        self._after = _padded(after, end_id)
        self._labels = _padded(label_ids, end_id)
        self._length = torch.full((len(after),), _OPEN)

    @property
    def thought_lengths(self) -> list[int]:
        """Tokens of each thought, after generation."""
        lengths: list[int] = torch.where(self._length == _OPEN, self._budget, self._length).tolist()
        return lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of what may come after ids [B, T]: minus infinity for whatever may not."""
        device = scores.device
        for name in ("_after_length", "_after", "_labels", "_length"):
            setattr(self, name, getattr(self, name).to(device))
        step = input_ids.shape[1] - self._start
        ending = (scores / self._temperature).softmax(-1)[:, self._stop].sum(-1)
        ends = torch.rand(len(scores), device=device) < ending
        if step >= self._budget:
            ends = torch.ones_like(ends)
        self._length = torch.where((self._length == _OPEN) & ends, step, self._length)
        thinking = (self._length == _OPEN)[:, None]
        thought = scores.clone()
        thought[:, self._stop] = -torch.inf
        allowed = self._next(step - self._length)
        # A token without any probability may be set all the same.
        kept = scores.gather(1, allowed).clamp(min=torch.finfo(scores.dtype).min)
        return torch.where(thinking, thought, torch.full_like(scores, -torch.inf).scatter(1, allowed, kept))

    def _next(self, behind: torch.Tensor) -> torch.Tensor:
        """What may stand `behind` [B] tokens behind a thought; ids [B, K], which may repeat."""
        set_ = self._after.gather(1, behind.clamp(0, self._after.shape[1] - 1)[:, None])
        length = self._after_length
        found = torch.where((behind == length)[:, None], self._labels, set_)
        return torch.where((behind > length)[:, None], self._end, found)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Ids [B, W], shorter rows filled up with their last id; empty ones with `fill`."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[row[-1] if row else fill] * (width - len(row))] for row in rows])
