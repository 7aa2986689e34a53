"""What people are asked to label, and who is at it."""

from datetime import timedelta

from demur.server.store import review
from demur.server.store.review import Place

from .making import NOW, draw, give, put, queue, record


def test_the_queue_shows_audits_first_oldest_first_and_blind(store):
    put(store, record("dec_r1"), record("dec_d", verdict="defer"), record("dec_t", verdict="trust"), record("dec_r2"))
    draw(store, record("dec_a1", drawn=True, verdict="trust", input="x"), record("dec_a2", drawn=True))
    first, place = queue(store, limit=3)
    assert [(one.id, one.kind) for one in first] == [("dec_a1", "audit"), ("dec_a2", "audit"), ("dec_r1", "review")]
    assert (first[0].decision, first[0].p_correct, first[0].input) == (None, None, "x")
    assert first[2].decision == "red"
    rest, end = queue(store, after=place)
    assert [one.id for one in rest] == ["dec_r2", "dec_d"]
    assert end is None
    give(store, ("dec_a1", "red"), ("dec_r2", "red"))
    assert [one.id for one in queue(store)[0]] == ["dec_a2", "dec_r1", "dec_d"]
    assert queue(store, after=Place("defer", 10**6)) == ([], None)


def test_a_claim_keeps_an_item_from_others_until_it_ends(store):
    put(store, record("dec_1"), record("dec_2"))
    until = NOW + timedelta(minutes=10)
    claim = lambda ids, person: store.write_now(  # noqa: E731
        lambda connection: review.claim(connection, ids, person=person, until=until, now=NOW)
    )
    assert claim(["dec_1", "dec_9"], "ann") == {"dec_1": True}
    assert claim(["dec_1", "dec_2"], "bob") == {"dec_1": False, "dec_2": True}
    assert [one.id for one in queue(store, "ann")[0]] == ["dec_1"]
    assert [one.id for one in queue(store, "bob", now=until)[0]] == ["dec_1", "dec_2"]
    released = store.write_now(lambda connection: review.release(connection, ["dec_1", "dec_2"], person="ann"))
    assert released == {"dec_1": True, "dec_2": False}
    # A clock that was set back by a year does not keep the item for one.
    assert [one.id for one in queue(store, "ann", now=NOW - timedelta(days=365))[0]] == ["dec_1", "dec_2"]
