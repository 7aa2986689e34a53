"""From a label to the next verdict, in the process that took it and in others; what is watched, and how it ends."""

import asyncio
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from demur.decision.task import AuditSpec
from demur.server.calibrated import Calibrated
from demur.server.errors import Conflict
from demur.server.loop.live import LiveLoop
from demur.server.loop.loop import Loop
from demur.server.loop.watch import Watch
from demur.server.metrics import Metrics
from demur.server.registry import Registry
from demur.server.settings import Settings
from demur.server.store.errors import StoreUnavailable
from tests.server.bundled import bundle_files, certificates, make_bundle

from .servers import AUDITED, label
from .test_live import SERVED, Clock


async def test_a_withdrawal_holds_from_the_next_decision_on_and_everywhere(run):
    one, other = await run(), await run()
    other.watch.start()
    ids = [(await one.decide())["id"] for _ in range(25)]
    assert (await other.decide())["verdict"] == "trust"
    assert (await one.metrics())['demur_certificate_valid{task="route"}'] == 1
    await label(one, ids, "sales")
    for process in (one, other):
        answer = await process.decide()
        async with asyncio.timeout(20):
            while process is other and answer["verdict"] == "trust":  # until it looks at the store, as it always does
                await asyncio.sleep(0.05)
                answer = await process.decide()
        assert (answer["verdict"], answer["reason"]) == ("review", "certificate_withdrawn")
        assert answer["certificate"] is None
        shown = await process.metrics()
        assert shown['demur_certificate_valid{task="route"}'] == 0
        assert shown['demur_certificate_state{slice="",state="withdrawn",task="route"}'] == 1
        assert shown['demur_trusted_risk{bound="estimate",slice="",task="route"}'] == 1
        log_w, limit = (f'demur_guarantee_log_{name}{{slice="",task="route"}}' for name in ("evalue", "threshold"))
        assert shown[log_w] >= shown[limit]
        assert not [name for name in shown if name.startswith("demur_reliability")]  # of so few audits
    fresh = await run()
    assert (await fresh.decide())["reason"] == "certificate_withdrawn"
    (version,) = (await fresh.ask("GET", "/tasks/route/bundles"))["versions"]
    assert (version["version"], version["active"], version["certificates"][0]["state"]) == (1, True, "withdrawn")


async def test_raw_readings_end_at_the_deadline_too(run, monkeypatch):
    process = await run()

    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(process.engine, "read", never)
    async with process.client() as client:
        late = await client.post(
            "/tasks/route/readings", json={"inputs": ["a", "b"]}, headers={"X-Demur-Deadline-Ms": "50"}
        )
    assert late.status_code == 504


async def test_draining_waits_for_renewals_calibrations_and_labels_too(run, monkeypatch):
    process = await run()
    services, begun, go = process.app.services, asyncio.Semaphore(0), asyncio.Event()

    async def held(*_, **__):
        begun.release()
        await go.wait()
        raise Conflict("it came to its end")

    monkeypatch.setattr(process.watch.renewal, "recertify", held)
    monkeypatch.setattr(services.desk, "calibrate", held)
    monkeypatch.setattr(process.loop, "stored", held)
    asked = {
        "/tasks/route/recertify": None,
        "/tasks/route/calibrate": {"rows": [{"input": "x", "label": "billing"}]},
        "/feedback": {"id": "dec_x", "label": "billing"},
    }
    work = [asyncio.create_task(process.ask("POST", path, body, 409)) for path, body in asked.items()]
    async with asyncio.timeout(20):
        for _ in asked:
            await begun.acquire()
        services.lifecycle.drain()
        idle = asyncio.create_task(services.admission.idle())
        await process.ask("POST", "/tasks/route/recalibrate", status=503)
        assert (idle.done(), services.admission.requests, services.admission.in_flight) == (False, 3, 0)
        go.set()
        await asyncio.gather(*work)
        await idle


@pytest.mark.parametrize("trust", [0.0, 0.01])
async def test_a_certificate_that_no_audit_watches_is_warned_of_at_the_start_and_when_adopted(run, caplog, trust):
    process = await run(task=replace(AUDITED, audit=AuditSpec(trust, 1.0, 1.0)))
    said = "the certificate of a task is not watched"
    assert (said in caplog.text) == (trust == 0.0)
    caplog.clear()
    await process.ask("POST", "/tasks/route/rollback", {"version": 1})
    assert (said in caplog.text) == (trust == 0.0)


async def test_drift_of_a_bundle_before_is_not_shown_any_more(run, tmp_path):
    def bundle(name: str, rows: int) -> Calibrated:
        reference = {
            "scores": np.linspace(0.6, 0.9, rows).tolist(),
            "label_mass": [0.99] * rows,
            "options": {"billing": rows - 2, "technical": 1, "sales": 1},
        }
        files = bundle_files(issued=certificates(), **{"reference.json": json.dumps(reference).encode()})
        return Calibrated.of(make_bundle(tmp_path / name / "route", files))

    async def shown() -> set[str]:
        for _ in range(60):
            await process.decide()
        await process.watch.tend()
        await process.watch.tend()
        return {name.partition("{")[0] for name in await process.metrics() if 'task="route"' in name}

    process = await run()
    await process.watch.shelf.adopt("route", bundle("large", 500), "me")
    assert {"demur_drift", "demur_drift_limit"} <= await shown()
    # As after a reload that found another wording: nothing is judged by the bundle any more.
    bundles = process.registry.bundles
    process.registry.bundles = {"route": replace(bundles["route"], mismatches=("question",))}
    assert not {"demur_drift", "demur_drift_limit", "demur_expected_accuracy"} & await shown()
    process.registry.bundles = bundles
    assert {"demur_drift", "demur_drift_limit"} <= await shown()
    # Too few rows to compare with.
    await process.watch.shelf.adopt("route", bundle("small", 100), "me")
    assert not {"demur_drift", "demur_drift_limit"} & await shown()


async def test_nothing_is_unknown_before_anything_is_served(tmp_path):
    loop = Loop.open(Settings(model="m", state_dir=tmp_path))
    assert loop is not None
    metrics = Metrics()
    watch = Watch.over(loop, Registry({}), metrics, loop.settings, lambda: None)
    assert "demur_state_age_seconds NaN" in metrics.page().decode()
    watch.serves("route", Calibrated.of(make_bundle(tmp_path / "route", bundle_files(issued=certificates()))))
    assert float(re.search(r"^demur_state_age_seconds (.+)", metrics.page().decode(), re.MULTILINE)[1]) < 10
    await loop.aclose()


async def test_what_was_never_read_is_overdue_after_as_long_as_anything_else(open_store):
    monotonic = Clock(100.0)
    live = LiveLoop(open_store(), monotonic=monotonic)
    monotonic.now = 500.0  # an engine takes its time
    live.serve(SERVED)
    assert live.unread_s == 0.0
    monotonic.now += 11.0
    assert live.unread_s == 11.0
    await live.catch_up()
    assert live.unread_s == 0.0


async def test_calibration_under_a_bundle_that_is_not_served_any_more_is_not_shown(run):
    process = await run()
    ids = [(await process.decide())["id"] for _ in range(60)]
    await label(process, ids, "billing")
    calibrated = 'demur_calibration_error{estimator="ece",task="route"}'
    assert calibrated in await process.metrics()
    process.registry.bundles = {}
    await process.watch.labelled()
    shown = await process.metrics()
    assert calibrated not in shown
    assert not [name for name in shown if name.startswith("demur_reliability{")]
    assert shown['demur_audits{state="open",task="route"}'] == 0


async def test_an_outage_makes_no_answer_of_what_was_deferred(run, monkeypatch):
    process = await run()

    async def down(*_, **__):
        raise StoreUnavailable("down")

    monkeypatch.setattr(process.loop.store, "write", down)
    deferred = await process.decide(policy={"min_label_mass": 1.0})
    assert (deferred["verdict"], deferred["reason"]) == ("defer", "low_label_mass")
    trusted = await process.decide()
    assert (trusted["verdict"], trusted["reason"]) == ("review", "audit_store_unavailable")


async def test_work_that_failed_in_the_background_keeps_nothing_from_being_closed(run, caplog, monkeypatch):
    async def failing():
        raise RuntimeError("of old")

    process = await run()
    monkeypatch.setattr(process.watch.live, "run", failing)
    monkeypatch.setattr(process.loop.log, "aclose", failing)
    process.watch.start()
    await asyncio.sleep(0)
    await process.watch.aclose()
    await process.loop.aclose()
    assert caplog.text.count("RuntimeError: of old") == 2
    with pytest.raises(StoreUnavailable):
        await process.loop.store.write(lambda _: None)


async def test_a_recent_risk_is_not_shown_any_more_once_no_label_is_recent(run):
    process = await run()
    name = 'demur_trusted_risk{bound="recent",slice="",task="route"}'
    await label(process, [(await process.decide())["id"]], "billing")
    assert (await process.metrics())[name] == 0
    for _ in range(200):
        await process.decide()
    await process.watch.labelled()
    for one in (process, await run()):
        assert name not in await one.metrics()
