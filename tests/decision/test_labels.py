"""Label plans against a brute-force language model: what is read, and that it adds up."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.decision.errors import LabelError
from demur.decision.labels import LOG_ZERO, MAX_LABEL_TOKENS, MAX_READ_IDS, continuation, letter_codes, plan_labels
from demur.decision.task import LengthHandling, ReadoutKind

VOCABULARY = 6
TERMINATORS = (4, 5)


class RandomLanguage:
    """A language model over 6 tokens: every prefix has its own random next-token distribution."""

    def __init__(self, seed: int, sharpness: float = 2.0) -> None:
        self.seed = seed
        self.sharpness = sharpness

    def next(self, prefix: tuple[int, ...]) -> np.ndarray:
        logits = self.sharpness * np.random.default_rng([self.seed, len(prefix), *prefix]).normal(size=VOCABULARY)
        return logits - np.logaddexp.reduce(logits)

    def logprob(self, sequence: tuple[int, ...]) -> float:
        return float(sum(self.next(sequence[:depth])[token] for depth, token in enumerate(sequence)))

    def answer(self, plan, prior=None):
        return plan.combine([self.next(read.suffix)[list(read.ids)] for read in plan.reads], prior)


def plan_of(sequences, terminators=TERMINATORS, **options):
    names = [f"label {index}" for index in range(len(sequences))]
    return plan_labels(ReadoutKind.TEXT, names, sequences, terminators, **options)


def tries():
    """2 to 12 different sequences of the four tokens that end nothing; many begin one another."""
    sequence = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    return st.lists(sequence, min_size=2, max_size=12, unique=True)


@given(sequences=tries(), seed=st.integers(0, 10_000), sharpness=st.floats(0, 20))
def test_label_mass_is_at_most_one_and_labels_are_what_a_model_would_write(sequences, seed, sharpness):
    language = RandomLanguage(seed, sharpness)
    plan = plan_of(sequences)
    readout = language.answer(plan)
    assert readout.label_mass <= 1
    assert np.exp(readout.logprobs).sum() <= 1 + 1e-9
    for index, path in enumerate(sequences):
        begins_another = any(other != path and other[: len(path)] == path for other in sequences)
        endings = [(*path, end) for end in TERMINATORS] if begins_another else [path]
        expected = np.logaddexp.reduce([language.logprob(ending) for ending in endings])
        assert readout.logprobs[index] == pytest.approx(max(expected, LOG_ZERO), rel=1e-9, abs=1e-9)


@given(sequences=tries())
def test_each_distinct_prefix_is_read_once(sequences):
    plan = plan_of(sequences)
    suffixes = [read.suffix for read in plan.reads]
    assert suffixes[0] == ()
    assert len(set(suffixes)) == len(suffixes)
    assert set(suffixes) == {path[:depth] for path in sequences for depth in range(len(path))}
    assert plan.depth == max(map(len, sequences)) - 1
    for read in plan.reads:
        assert len(set(read.ids)) == len(read.ids)


def test_all_texts_of_one_depth_and_their_ends_exhaust_the_probability():
    sequences = list(itertools.product(range(VOCABULARY), repeat=2))
    readout = RandomLanguage(3).answer(plan_of(sequences))
    assert readout.label_mass == pytest.approx(1)


def test_without_a_terminator_nested_labels_would_count_twice():
    """A label inside another and the other, both certain: the close takes what the longer one has."""

    def certain(token):
        logprobs = np.full(VOCABULARY, -50.0)
        logprobs[token] = 0.0
        return logprobs

    plan = plan_of([(0,), (0, 1)])
    tables = {(): certain(0), (0,): certain(1)}
    readout = plan.combine([tables[read.suffix][list(read.ids)] for read in plan.reads])
    assert readout.decision == 1
    assert readout.label_mass == pytest.approx(1)


def test_length_handling():
    language = RandomLanguage(1)
    sequences = [(0,), (0, 1), (2, 3, 1)]
    total = language.answer(plan_of(sequences))
    mean = language.answer(plan_of(sequences, length=LengthHandling.MEAN))
    # (0,) is closed by a terminator, which is read too.
    np.testing.assert_allclose(mean.scores, total.logprobs / [2, 2, 3])
    np.testing.assert_array_equal(mean.logprobs, total.logprobs)
    plan = plan_of(sequences, length=LengthHandling.PRIOR)
    assert plan.needs_prior
    prior = np.array([-1.0, -2.0, -3.0])
    np.testing.assert_allclose(language.answer(plan, prior).scores, total.logprobs - prior)
    with pytest.raises(ValueError, match="prior"):
        language.answer(plan)


def test_equal_labels_tie_and_the_first_wins():
    plan = plan_of([(0,), (1,), (2,)])
    readout = plan.combine([np.log([0.2, 0.4, 0.4])])
    assert readout.decision == 1
    np.testing.assert_allclose(readout.probabilities, [0.2, 0.4, 0.4])


def test_255_labels_with_a_common_beginning_are_one_read_each_prefix():
    sequences = [(7,), *((7, token) for token in range(100, 354))]
    plan = plan_labels(ReadoutKind.TEXT, [str(path) for path in sequences], sequences, (1, 2, 3))
    assert len(plan.sequences) == 255
    assert [len(read.ids) for read in plan.reads] == [1, MAX_READ_IDS]
    readout = plan.combine([np.log([1.0]), np.full(256, -np.log(256))])
    assert readout.label_mass == pytest.approx(1)


def test_probabilities_of_zero_stay_numbers():
    readout = plan_of([(0,), (1, 2)]).combine([np.array([-np.inf, -np.inf]), np.array([-np.inf])])
    assert np.isfinite(readout.probabilities).all()
    assert readout.label_mass == 0
    assert readout.decision == 0


@pytest.mark.parametrize("arrays", [[np.zeros(3)], [np.zeros(2), np.zeros(1)], []])
def test_reads_of_another_shape_are_refused(arrays):
    with pytest.raises(ValueError, match="do not match"):
        plan_of([(0,), (1,)]).combine(arrays)


def test_a_nan_is_no_decision():
    with pytest.raises(ValueError, match="NaN"):
        plan_of([(0,), (1,)]).combine([np.array([0.0, np.nan])])


def test_identical_sequences_name_both_options():
    with pytest.raises(LabelError, match=r"options 1 and 3, 'label 0' and 'label 2'.*rename") as caught:
        plan_of([(0,), (1,), (0,)])
    assert caught.value.options == (0, 2)


def test_a_label_without_tokens_is_refused():
    with pytest.raises(LabelError, match="option 2") as caught:
        plan_of([(0,), ()])
    assert caught.value.options == (1,)


def test_a_terminator_that_continues_a_label_does_not_close_it():
    plan = plan_of([(0,), (0, 4)])
    assert set(plan.reads[1].ids) == {4, 5}
    with pytest.raises(LabelError, match="begins another option"):
        plan_of([(0,), (0, 4)], terminators=(4,))


def test_letter_codes_are_one_token_in_their_context(builder):
    codes = letter_codes(builder.encode, "Answer:", " ") or letter_codes(builder.encode, "Answer: ", "")
    assert [code for code, _ in codes[:26]] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert len({token for _, token in codes}) == len(codes)
    assert all(len(code) == 2 for code, _ in codes[26:])


@pytest.mark.parametrize("kind", ["smollm2", "qwen3"])
def test_there_are_letters_for_255_options(builder):
    assert len(letter_codes(builder.encode, "Answer:", " ")) >= 255


def test_a_gap_in_the_alphabet_gives_no_codes():
    assert letter_codes(lambda text: [0, 0] if text == "Q" else [ord(char) for char in text], "", "") == []


def test_a_label_is_encoded_alone_where_its_context_would_change(builders):
    encode = builders["smollm2"].encode
    assert continuation(encode, "Answer:", " yes") == tuple(encode(" yes"))
    # "Answer: " and "yes" together are written with the space in front of "yes".
    assert continuation(encode, "Answer: ", "yes") == tuple(encode("yes"))


def test_a_label_has_a_bounded_length():
    longest = (0,) * MAX_LABEL_TOKENS
    assert len(plan_of([longest, (1,)]).reads) == MAX_LABEL_TOKENS
    with pytest.raises(LabelError, match="description") as error:
        plan_labels(ReadoutKind.TEXT, ["yes", "no " * 10_000], [(1,), (*longest, 0)], TERMINATORS)
    assert error.value.options == (1,)
    assert len(str(error.value)) < 300
