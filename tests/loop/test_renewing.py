"""Certificates and calibrators that are renewed from audits, when somebody asks for it or by the schedule."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from demur.decision.task import AuditSpec
from demur.server.loop import renewal
from demur.server.store.attempts import attempts_made

from .servers import AUDITED, decide_rightly, label


async def test_a_certificate_is_renewed_by_audits_drawn_after_its_withdrawal(run):
    one, other = await run(), await run()
    await decide_rightly(one, 25, wrong=25)
    assert (await one.ask("POST", "/tasks/route/recertify"))["outcome"] == "too_few_audits"
    await decide_rightly(one, 150)
    renewed = await one.ask("POST", "/tasks/route/recertify")
    assert (renewed["outcome"], renewed["attempt"], renewed["certifying"]) == ("adopted", 1, 150)
    assert renewed["delta"] == pytest.approx(0.05 / 2)
    assert (await one.decide())["verdict"] == "trust"
    shown = await one.metrics()
    assert shown['demur_recertifications_total{outcome="adopted",task="route"}'] == 1
    await other.watch.tend()
    await other.watch.live.catch_up()
    assert (await other.decide())["calibration"]["bundle"] == renewed["bundle"]
    assert (await other.decide())["verdict"] == "trust"
    # Back again, with the state that its certificate had, and everywhere.
    back = await other.ask("POST", "/tasks/route/rollback", {"version": 1})
    assert (back["version"], back["active"], back["certificates"][0]["state"]) == (1, True, "withdrawn")
    listed = (await one.ask("GET", "/tasks/route/bundles"))["versions"]
    assert [version["active"] for version in listed] == [True, False]
    await one.watch.tend()
    await one.watch.live.catch_up()
    for process in (one, other, await run()):
        assert (await process.decide())["reason"] == "certificate_withdrawn"
    await one.ask("POST", "/tasks/route/rollback", {"version": 9}, status=404)
    await one.ask("POST", "/tasks/route/rollback", {"version": "1"}, status=422)


async def test_attempts_on_one_question_are_counted_and_paid_for(run):
    process = await run()
    await decide_rightly(process, 120, wrong=20)
    first = await process.ask("POST", "/tasks/route/recertify")
    assert (first["outcome"], first["attempt"]) == ("too_few_audits", None)
    await decide_rightly(process, 100, wrong=20)
    for number in (1, 2, 3):
        tried = await process.ask("POST", "/tasks/route/recertify")
        assert (tried["outcome"], tried["attempt"], tried["version"]) == ("nothing_certified", number, None)
        assert tried["delta"] == pytest.approx(0.05 / (number * (number + 1)))


async def test_certificates_are_renewed_by_the_schedule(run):
    process = await run(renewal_days=7)
    await decide_rightly(process, 150)
    now, first = datetime.now(UTC), process.registry.bundles["route"].calibrated.bundle.id
    await process.watch.renew_due(now + timedelta(days=6))
    assert process.registry.bundles["route"].calibrated.bundle.id == first
    await process.watch.renew_due(now + timedelta(days=8))
    assert process.registry.bundles["route"].calibrated.bundle.id != first
    versions = (await process.ask("GET", "/tasks/route/bundles"))["versions"]
    assert [version["adopted_by"] for version in versions] == [None, "schedule"]


async def test_of_several_processes_that_see_what_is_due_one_spends_an_attempt(run, monkeypatch):
    one, other = await run(renewal_days=7), await run(renewal_days=7)
    await decide_rightly(one, 150)
    now, recertify = datetime.now(UTC) + timedelta(days=8), other.watch.renewal.recertify

    async def slowly(*asked, **how):
        await one.watch.renew_due(now)
        return await recertify(*asked, **how)

    monkeypatch.setattr(other.watch.renewal, "recertify", slowly)
    await other.watch.renew_due(now)
    assert await one.loop.store.read(lambda connection: attempts_made(connection, "route")) == 1
    assert len((await other.ask("GET", "/tasks/route/bundles"))["versions"]) == 2


async def test_a_better_calibrator_is_adopted_and_keeps_the_process_of_its_certificate(run):
    process = await run()
    rng = np.random.default_rng(0)
    # What is trusted is always right, and the bundle's calibrator is far from saying so.
    for _ in range(260):
        sure = rng.random() < 0.7
        process.engine.logprobs = tuple(np.log([0.6, 0.25, 0.15] if sure else [0.35, 0.33, 0.32]))
        answer = await process.decide()
        await label(process, [answer["id"]], "billing" if sure else str(rng.choice(["billing", "technical", "sales"])))
    before = process.watch.live.view.guarantees
    shown = await process.metrics()
    bins = {name.split('bin="')[1][:3] for name in shown if name.startswith("demur_reliability{")}
    found = {
        value: [shown[f'demur_reliability{{bin="{low}",task="route",value="{value}"}}'] for low in sorted(bins)]
        for value in ("p_correct", "accuracy", "audits")
    }
    assert (len(bins), sum(found["audits"])) == (2, 260)
    assert found["accuracy"][1] == 1.0 > found["p_correct"][1] > found["accuracy"][0]
    renewed = await process.ask("POST", "/tasks/route/recalibrate")
    assert renewed["outcome"] == "adopted"
    assert renewed["improvement"] > renewed["margin"] > 0
    assert renewed["attempt"] is None
    await process.watch.labelled()
    after = process.watch.live.view.guarantees
    assert after.keys() == before.keys()
    assert (await process.decide())["calibration"]["bundle"] == renewed["bundle"]
    assert (await process.ask("POST", "/tasks/route/recalibrate"))["outcome"] == "too_few_audits"


async def test_the_first_renewal_is_an_increase(run):
    process = await run()
    await process.watch.labelled()
    before = await process.metrics()
    renewed = await process.ask("POST", "/tasks/route/recertify")
    name = f'demur_recertifications_total{{outcome="{renewed["outcome"]}",task="route"}}'
    assert (before[name], (await process.metrics())[name]) == (0, 1)
    assert before['demur_recalibrations_total{outcome="adopted",task="route"}'] == 0


async def test_what_is_not_better_beyond_chance_is_not_adopted(run):
    process = await run()
    rng = np.random.default_rng(1)
    served = process.registry.bundles["route"].calibrated
    for _ in range(220):
        # Too unsure to be trusted, so that nothing is withdrawn meanwhile.
        process.engine.logprobs = tuple(np.log(rng.permutation([0.35, 0.33, 0.32])))
        answer = await process.decide()
        chances = served.calibrator.transform_one(np.array(process.engine.logprobs))
        await label(process, [answer["id"]], ("billing", "technical", "sales")[int(rng.choice(3, p=chances))])
    assert (await process.ask("POST", "/tasks/route/recalibrate"))["outcome"] == "no_improvement"
    assert process.registry.bundles["route"].calibrated.bundle.id == served.bundle.id


async def test_what_leaves_out_a_verdict_certifies_nothing(run):
    """Decisions between those that are trusted and those that are deferred would be certified unseen."""
    process = await run(task=replace(AUDITED, audit=AuditSpec(1.0, 0.0, 1.0)))
    await decide_rightly(process, 150)
    for how in ("recertify", "recalibrate"):
        refused = await process.ask("POST", f"/tasks/route/{how}", status=409)
        assert "audit.review" in refused["detail"]
    assert await process.loop.store.read(lambda connection: attempts_made(connection, "route")) == 0
    # While a certificate is withdrawn all are drawn alike.
    await decide_rightly(process, 25, wrong=25)
    await decide_rightly(process, 150)
    assert (await process.ask("POST", "/tasks/route/recertify"))["outcome"] == "adopted"


async def test_a_certificate_that_is_withdrawn_while_it_is_renewed_stays_withdrawn(run, monkeypatch):
    process = await run()
    await decide_rightly(process, 150)
    # What withdraws it is in hand, and not labelled yet, when the audits before it are read.
    answers = [await process.decide() for _ in range(25)]
    certify, loop = renewal.certify, asyncio.get_running_loop()

    def meanwhile(*asked):
        given = label(process, [one["id"] for one in answers], "sales")
        asyncio.run_coroutine_threadsafe(given, loop).result(20)
        return certify(*asked)

    monkeypatch.setattr(renewal, "certify", meanwhile)
    refused = await process.ask("POST", "/tasks/route/recertify", status=409)
    assert "withdrawn meanwhile" in refused["detail"]
    assert (await process.decide())["reason"] == "certificate_withdrawn"
    assert len((await process.ask("GET", "/tasks/route/bundles"))["versions"]) == 1


async def test_more_audits_than_are_read_at_once_all_certify(run, monkeypatch):
    monkeypatch.setattr(renewal, "_PAGE", 60)
    process = await run()
    await decide_rightly(process, 150)
    renewed = await process.ask("POST", "/tasks/route/recertify")
    assert (renewed["outcome"], renewed["certifying"]) == ("adopted", 150)


async def test_audits_that_are_drawn_meanwhile_keep_no_renewal_waiting(run, monkeypatch):
    process = await run()
    await decide_rightly(process, 150)
    read, pages, loop = renewal._page, [], asyncio.get_running_loop()

    def busy(*asked):
        pages.append(read(*asked))
        assert len(pages) < 10
        asyncio.run_coroutine_threadsafe(process.decide(), loop).result(20)
        return pages[-1]

    monkeypatch.setattr(renewal, "_page", busy)
    renewed = await process.ask("POST", "/tasks/route/recertify")
    assert (renewed["outcome"], renewed["certifying"]) == ("adopted", 150)


async def test_labels_that_nothing_can_be_fitted_on_are_answered(run):
    process = await run(audit_days=1e-9)
    for _ in range(210):
        await process.decide()
    assert (await process.ask("POST", "/tasks/route/recalibrate"))["outcome"] == "too_few_audits"
    audits = (await process.ask("GET", "/review?limit=200&kind=audit"))["items"]
    await label(process, [one["id"] for one in audits[:100]], "billing")
    tried = await process.ask("POST", "/tasks/route/recalibrate")
    assert (tried["outcome"], tried["attempt"]) == ("no_improvement", None)


async def test_looking_for_an_improvement_on_labels_that_certify_is_an_attempt(run):
    """Else one could look until they come out well, and pay only then."""
    process = await run()
    rng = np.random.default_rng(1)
    served = process.registry.bundles["route"].calibrated
    await decide_rightly(process, 25, wrong=25)
    for _ in range(220):
        process.engine.logprobs = tuple(np.log(rng.permutation([0.35, 0.33, 0.32])))
        answer = await process.decide()
        chances = served.calibrator.transform_one(np.array(process.engine.logprobs))
        await label(process, [answer["id"]], ("billing", "technical", "sales")[int(rng.choice(3, p=chances))])
    for number in (1, 2):
        tried = await process.ask("POST", "/tasks/route/recalibrate")
        assert (tried["outcome"], tried["attempt"]) == ("no_improvement", number)
    assert await process.loop.store.read(lambda connection: attempts_made(connection, "route")) == 2
