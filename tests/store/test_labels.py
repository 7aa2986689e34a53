"""Labels that are given, repeated and corrected, by one person and by two."""

from datetime import timedelta

from demur.server.store import upkeep
from demur.server.store.labels import LabelGiven

from .making import NOW, draw, find, give, put, queue, record


def test_every_label_gets_its_own_answer(store):
    put(store, record("dec_1"))
    draw(store, record("dec_2", drawn=True))
    ahead = NOW + timedelta(hours=1)
    given = [
        ("dec_1", "green"),
        ("dec_2", "red"),
        ("dec_0", "red"),
        ("dec_1", "pink"),
        LabelGiven("dec_2", "blue", at=ahead),
    ]
    results = [(one.status, one.evidence, one.problem) for one in give(store, *given)]
    assert results == [
        ("stored", False, None),
        ("stored", True, None),
        ("rejected", False, "unknown_id"),
        ("rejected", False, "not_an_option"),
        ("rejected", True, "in_the_future"),
    ]
    assert [one.status for one in give(store, ("dec_1", "green"), ("dec_2", "red"))] == ["unchanged", "unchanged"]
    assert find(store, "dec_2").audit.error is False


def test_corrections_keep_history(store):
    draw(store, record("dec_1", drawn=True))
    assert [one.status for one in give(store, ("dec_1", "red"), ("dec_1", "blue"))] == ["stored", "corrected"]
    assert give(store, ("dec_1", "green"), key="bob")[0].status == "corrected"
    found = find(store, "dec_1")
    assert [(one.seq, one.label, one.corrects, one.key) for one in found.labels] == [
        (1, "red", None, "ann"),
        (2, "blue", 1, "ann"),
        (3, "green", 2, "bob"),
    ]
    assert (found.audit.label, found.audit.error, found.audit.open) == ("green", True, False)


def test_two_people_label_an_audit_without_correcting_each_other(store):
    draw(store, record("dec_1", drawn=True), double=True)
    assert give(store, ("dec_1", "red"))[0].status == "stored"
    assert find(store, "dec_1").audit.open
    page = {who: queue(store, person=who)[0] for who in ("ann", "bob")}
    assert ([item.id for item in page["ann"]], [item.id for item in page["bob"]]) == ([], ["dec_1"])
    assert give(store, ("dec_1", "blue"), key="bob")[0].status == "stored"
    audit = find(store, "dec_1").audit
    assert (audit.label, audit.second, audit.open) == ("red", "blue", False)
    assert store.read_now(upkeep.disagreement) == {"colours": (1, 1)}
    give(store, ("dec_1", "red"), key="bob")
    assert store.read_now(upkeep.disagreement) == {"colours": (1, 0)}


def test_a_person_of_two_corrects_their_own_label_whatever_its_source(store):
    draw(store, record("dec_1", drawn=True), double=True)
    given = [
        ("ann", "red", "first", "stored", False),
        ("ann", "blue", "recheck", "corrected", False),
        ("bob", "blue", None, "stored", True),
        ("bob", "green", "recheck", "corrected", True),
        ("ann", "red", None, "corrected", False),
        ("ann", "red", "again", "unchanged", False),
        ("bob", "green", None, "unchanged", True),
    ]
    for who, label, source, status, second in given:
        (result,) = give(store, LabelGiven("dec_1", label, source), key=who)
        assert (result.status, result.second) == (status, second)
    found = find(store, "dec_1")
    assert (found.audit.label, found.audit.second, found.audit.open) == ("red", "green", False)
    assert [one.corrects for one in found.labels] == [None, 1, None, 3, 2]


def test_after_two_people_a_third_corrects_the_label_in_force(store):
    draw(store, record("dec_1", drawn=True), double=True)
    give(store, ("dec_1", "red"))
    give(store, ("dec_1", "blue"), key="bob")
    for who, label, expected in (("boss", "green", ("green", "blue")), ("bob", "red", ("green", "red"))):
        (result,) = give(store, ("dec_1", label), key=who)
        audit = find(store, "dec_1").audit
        assert (result.status, result.second, (audit.label, audit.second)) == ("corrected", who == "bob", expected)
    # Both labels of one request are taken alike.
    draw(store, record("dec_2", drawn=True), double=True)
    assert [one.second for one in give(store, ("dec_2", "red"), ("dec_2", "blue"))] == [False, False]
    assert store.read_now(upkeep.disagreement) == {"colours": (1, 1)}


def test_where_nobody_can_be_told_apart_one_label_is_all_that_is_asked_for(store):
    draw(store, *(record(f"dec_{i}", drawn=True) for i in (1, 2)), double=True)
    assert [give(store, ("dec_1", label), key=None)[0].status for label in ("red", "blue")] == ["stored", "corrected"]
    assert [item.id for item in queue(store, person=None)[0]] == ["dec_2"]
    assert [item.id for item in queue(store, person="ann")[0]] == ["dec_2"]
    assert not find(store, "dec_1").audit.open
    give(store, ("dec_2", "red"))
    assert (queue(store, person=None)[0], [item.id for item in queue(store, person="bob")[0]]) == ([], ["dec_2"])
    # Who gave the first label is not known, so the next is no second person's.
    assert give(store, ("dec_1", "green"))[0].second is False
    assert store.read_now(upkeep.disagreement) == {}
