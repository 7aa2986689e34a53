"""Bundles and policies that judge beside those in force, and touch nothing."""

from demur.server.calibrated import Calibrated
from demur.server.store.upkeep import exported
from tests.server.bundled import bundle_files, certificates, make_bundle

from .servers import AUDITED, decide_rightly


async def test_a_shadow_judges_beside_the_live_bundle_and_touches_nothing(run, tmp_path):
    process = await run()
    nothing = make_bundle(tmp_path / "shadow", bundle_files(issued=certificates(right=False)))
    before = await process.decide()
    process.pipeline.serve_shadows([AUDITED], {"route": Calibrated.of(nothing)})
    after = await process.decide()
    assert (after["verdict"], after["calibration"]) == ("trust", before["calibration"])
    shown = await process.metrics()
    assert shown['demur_shadow_decisions_total{live="trust",task="route",verdict="defer"}'] == 1
    kept = (await process.ask("GET", f"/decisions/{after['id']}"))["shadow"]
    assert (kept["verdict"], kept["reason"]) == ("defer", "nothing_certified")
    assert (kept["bundle"], kept["policy"]) == (nothing.id, None)
    assert (await process.ask("GET", f"/decisions/{before['id']}"))["shadow"] is None


async def test_a_shadow_policy_judges_beside_the_one_in_force_and_touches_nothing(run, tmp_path):
    process = await run()
    path = "/tasks/route/policy/shadow"
    before = await process.decide()
    strict = {"kind": "fixed_thresholds", "trust_at": 1.0, "scale": "score"}
    named = await process.ask("PUT", path, strict)
    after = await process.decide()
    assert {**after, "id": 0, "timings": 0} == {**before, "id": 0, "timings": 0}
    kept = (await process.ask("GET", f"/decisions/{after['id']}"))["shadow"]
    assert kept["decision"] == after["decision"]
    assert (kept["verdict"], kept["reason"]) == ("review", "below_trust_threshold")
    assert (kept["bundle"], kept["policy"]) == (None, named["id"])
    shown = await process.metrics()
    assert shown['demur_shadow_decisions_total{live="trust",task="route",verdict="review"}'] == 1
    # What is trusted under the live certificate is withdrawn from a shadow on the same bundle too.
    await process.ask("PUT", path, {"kind": "certified"})
    await decide_rightly(process, 25, wrong=25)
    last = await process.decide()
    assert (await process.ask("GET", f"/decisions/{last['id']}"))["shadow"]["reason"] == "certificate_withdrawn"
    # A policy on a bundle, neither of them in force.
    sure = Calibrated.of(make_bundle(tmp_path / "other", bundle_files(issued=certificates())))
    process.pipeline.serve_shadows([AUDITED], {"route": sure})
    both = (await process.ask("GET", f"/decisions/{(await process.decide())['id']}"))["shadow"]
    assert (both["verdict"], both["bundle"] is None, both["policy"] is None) == ("trust", False, False)
    store = process.loop.store
    *_, last_audit = await store.read(lambda connection: list(exported(connection, store.options, None)))
    assert last_audit.decision.shadow.verdict == "trust"
