"""Where a completion decides: the position of its decision token, in free writing or behind a forced prefix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

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
        self._after, self._labels, self._stop = after, label_ids, list(dict.fromkeys(stop_ids))
        self._length: list[int | None] = [None] * len(after)

    @property
    def thought_lengths(self) -> list[int]:
        """Tokens of each thought, after generation."""
        return [self._budget if length is None else length for length in self._length]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of what may come after ids [B, T]: minus infinity for whatever may not."""
        step = input_ids.shape[1] - self._start
        ending = (scores / self._temperature).softmax(-1)[:, self._stop].sum(-1)
        ends = (torch.rand(len(scores), device=scores.device) < ending).tolist()
        scores = scores.clone()
        for row in range(len(scores)):
            if self._length[row] is None and (ends[row] or step >= self._budget):
                self._length[row] = step
            length = self._length[row]
            if length is None:
                scores[row, self._stop] = -torch.inf
                continue
            allowed = self._next(row, step - length)
            kept = scores[row, allowed]
            scores[row] = -torch.inf
            # A token without any probability may be set all the same.
            scores[row, allowed] = kept.clamp(min=torch.finfo(kept.dtype).min)
        return scores

    def _next(self, row: int, behind: int) -> list[int]:
        """What may stand `behind` tokens behind a thought."""
        after = self._after[row]
        if behind < len(after):
            return [after[behind]]
        return list(self._labels[row]) if behind == len(after) else [self._end]
