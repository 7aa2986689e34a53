"""Labels: the tokens that stand for options, what must be read for them, and how the reads become a readout.

A label is a sequence of token ids. The labels of a question form a trie; every node that has children is one read:
"after prompt + suffix, how probable is each of these ids?". A label's log-probability is the sum along its path. A
label that begins another one ("card", "card lost") is a node with children; it is closed by a terminator, so that the
two are different events and all labels together have at most probability 1.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demur.decision.errors import LabelError
from demur.decision.readout import Readout
from demur.decision.task import LengthHandling, ReadoutKind

#: The most ids that one read asks for: 255 options and a terminator.
MAX_READ_IDS = 256

#: The longest label. Each of its tokens is a read of its own, and planning them takes the square of their number.
MAX_LABEL_TOKENS = 64

#: Log-probabilities are floored here, so that a read of exactly zero probability stays a number.
LOG_ZERO = -1e4

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class LabelRead:
    """One read: log-probabilities of `ids` (1 to 256) as the next token after the prompt and `suffix`."""

    suffix: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LabelPlan:
    """What to read for K labels and how to put it together.

    Attributes
    ----------
    kind : the readout that is used; may differ from the one asked for, and `note` then says why.
    labels : K strings, as the model would write them.
    sequences : K token sequences, all different.
    reads : the reads, shortest suffix first; the first has an empty suffix.
    length : how sequences of different lengths are compared (`LengthHandling.PRIOR`: `combine` wants `prior`).
    """

    kind: ReadoutKind
    labels: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    reads: tuple[LabelRead, ...]
    length: LengthHandling
    note: str | None
    # Positions in the concatenated reads, behind which stand log 1 and log 0: along the path [K, D], closing it [K, 2].
    _path: NDArray[np.intp]
    _close: NDArray[np.intp]
    _lengths: NDArray[np.float64]

    @property
    def depth(self) -> int:
        """Tokens that the longest suffix adds to the prompt."""
        return max(len(read.suffix) for read in self.reads)

    @property
    def needs_prior(self) -> bool:
        """Whether `combine` needs the readout's `logprobs` under a content-free input."""
        return self.length is LengthHandling.PRIOR

    def combine(self, arrays: Sequence[NDArray[np.float64]], prior: NDArray[np.float64] | None = None) -> Readout:
        """The readout of `arrays`, one float array [len(read.ids)] for each of `reads`, natural logarithms.

        `prior` is [K], the `logprobs` of a readout of the same plan under a content-free input; scores are
        `logprobs` for `sum`, divided by the number of tokens read for `mean`, less `prior` for `prior`.
        Raises ValueError for arrays of the wrong shape, NaN, or a prior that is missing.
        """
        if [len(array) for array in arrays] != [len(read.ids) for read in self.reads]:
            raise ValueError("the arrays do not match the plan's reads")
        flat = np.concatenate([*(np.asarray(array, dtype=np.float64) for array in arrays), [0.0, -np.inf]])
        if np.isnan(flat).any():
            raise ValueError("a read holds NaN")
        logprobs = flat[self._path].sum(axis=1) + np.logaddexp.reduce(flat[self._close], axis=1)
        logprobs = np.maximum(logprobs, LOG_ZERO)
        scores = logprobs
        if self.length is LengthHandling.MEAN:
            scores = logprobs / self._lengths
        elif self.length is LengthHandling.PRIOR:
            if prior is None:
                raise ValueError("this plan compares labels with their prior; combine() needs it")
            scores = logprobs - prior
        return Readout(logprobs=logprobs, scores=scores, label_mass=min(1.0, float(np.exp(logprobs).sum())))


def letter_codes(encode: Encode, context: str, separator: str) -> list[tuple[str, int]]:
    """The codes A..Z, then AA..ZZ, that are one token of their own after `context + separator`, with their ids."""
    letters = string.ascii_uppercase
    codes: list[tuple[str, int]] = []
    for code in (*letters, *(first + second for first in letters for second in letters)):
        sequence = continuation(encode, context, separator + code)
        if len(sequence) == 1:
            codes.append((code, sequence[0]))
    # A letter that is missing among A..Z would leave a gap that no reader expects.
    return codes if [code for code, _ in codes[:26]] == list(letters) else []


def continuation(encode: Encode, context: str, text: str) -> tuple[int, ...]:
    """The ids of `text` as it stands after `context`.

    Where the tokenizer would write the two together differently from one after the other, `text` is encoded alone:
    the context is in the prompt already and its tokens no longer change.
    """
    if context:
        head = list(encode(context))
        joint = list(encode(context + text))
        if joint[: len(head)] == head and len(joint) > len(head):
            return tuple(joint[len(head) :])
    return tuple(encode(text))


def plan_labels(
    kind: ReadoutKind,
    labels: Sequence[str],
    sequences: Sequence[Sequence[int]],
    terminators: Sequence[int] = (),
    *,
    length: LengthHandling = LengthHandling.SUM,
    note: str | None = None,
) -> LabelPlan:
    """Plans the reads of K different token sequences.

    Parameters
    ----------
    labels : K strings, named in errors.
    sequences : K sequences of at least one token id.
    terminators : up to two ids, either of which ends an answer; used for labels that begin another label.

    Raises
    ------
    LabelError : two sequences are the same, one is empty or longer than `MAX_LABEL_TOKENS`, or one cannot be closed.
    """
    paths = [tuple(sequence) for sequence in sequences]
    _refuse_same(labels, paths)
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            children.setdefault(path[:depth], {})[token] = None
    closers = {
        path: _closers(labels[index], children[path], terminators, index)
        for index, path in enumerate(paths)
        if path in children
    }
    suffixes = sorted(children, key=len)
    reads = tuple(LabelRead(suffix, (*children[suffix], *closers.get(suffix, ()))) for suffix in suffixes)
    position: dict[tuple[tuple[int, ...], int], int] = {}
    for read in reads:
        for token in read.ids:
            position[read.suffix, token] = len(position)
    one, zero = len(position), len(position) + 1
    path_index = np.full((len(paths), max(map(len, paths))), one, dtype=np.intp)
    close_index = np.full((len(paths), 2), zero, dtype=np.intp)
    for row, path in enumerate(paths):
        path_index[row, : len(path)] = [position[path[:depth], token] for depth, token in enumerate(path)]
        ends = [position[path, token] for token in closers.get(path, ())] or [one]
        close_index[row, : len(ends)] = ends
    lengths = np.array([len(path) + (path in closers) for path in paths], dtype=np.float64)
    return LabelPlan(
        kind=kind,
        labels=tuple(labels),
        sequences=tuple(paths),
        reads=reads,
        length=length,
        note=note,
        _path=path_index,
        _close=close_index,
        _lengths=lengths,
    )


def _refuse_same(labels: Sequence[str], paths: Sequence[tuple[int, ...]]) -> None:
    seen: dict[tuple[int, ...], int] = {}
    for index, path in enumerate(paths):
        if not path:
            raise LabelError(f"option {index + 1}, {labels[index]!r}, has no tokens; give it a name", (index,))
        if len(path) > MAX_LABEL_TOKENS:
            raise LabelError(
                f"option {index + 1}, {labels[index][:40]!r}…, has {len(path)} tokens, and a name that is read as text "
                f"at most {MAX_LABEL_TOKENS}; move words into its description, or use the letter readout",
                (index,),
            )
        first = seen.setdefault(path, index)
        if first != index:
            raise LabelError(
                f"options {first + 1} and {index + 1}, {labels[first]!r} and {labels[index]!r}, are the same tokens to "
                "this model; rename one of them, or use the letter readout",
                (first, index),
            )


def _closers(label: str, taken: dict[int, None], terminators: Sequence[int], index: int) -> tuple[int, ...]:
    free = [token for token in dict.fromkeys(terminators) if token not in taken]
    free = free[: min(2, MAX_READ_IDS - len(taken))]
    if not free:
        raise LabelError(
            f"option {index + 1}, {label!r}, begins another option and this tokenizer has no token to end it with; "
            "rename it, or use the letter readout",
            (index,),
        )
    return tuple(free)
