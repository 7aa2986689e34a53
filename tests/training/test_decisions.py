from demur.training.decisions import Decision, find_decision

WORDS = dict(enumerate(["I", " think", " Answer:", " A", " B", "pple", "!", "\n", " C", " C1"]))
SEQUENCES = [(3,), (4,), (8, 6)]


def decide(*ids: int) -> Decision | None:
    return find_decision(ids, SEQUENCES, "Answer:", lambda part: "".join(WORDS[i] for i in part))


def test_the_label_behind_the_prefix_decides():
    assert decide(0, 1, 2, 4) == Decision(3, 1)


def test_a_label_in_the_thought_is_none():
    assert decide(0, 3, 1, 4) is None
    assert decide(3, 2, 4) == Decision(2, 1)


def test_of_two_decisions_the_last_one_counts():
    assert decide(2, 3, 7, 2, 4) == Decision(4, 1, found=2)


def test_the_beginning_of_a_longer_word_is_no_label():
    assert decide(2, 3, 5) is None
    assert decide(2, 3, 6) == Decision(1, 0)


def test_a_label_of_two_tokens_must_be_whole():
    assert decide(2, 8) is None
    assert decide(2, 8, 6) == Decision(1, 2)


def test_nothing_is_found_in_nothing():
    assert decide() is None
    assert decide(2) is None
