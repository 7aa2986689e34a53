"""From a label to the next verdict, in the process that took it and in others; versions, renewal and who is told."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

from demur.decision.bundle import read_bundle
from demur.decision.task import AuditSpec
from demur.server.calibrated import Calibrated
from demur.server.errors import Conflict
from demur.server.loop import renewal
from demur.server.loop.live import LiveLoop
from demur.server.loop.loop import Loop
from demur.server.loop.watch import Watch
from demur.server.loop.webhook import Webhook, signature
from demur.server.metrics import Metrics
from demur.server.registry import Registry
from demur.server.settings import Settings
from demur.server.store.attempts import attempts_made
from demur.server.store.errors import StoreUnavailable
from demur.server.store.upkeep import exported
from tests.server.bundled import bundle_files, certificates, make_bundle

from .servers import AUDITED, start
from .test_live import SERVED, Clock


@pytest.fixture
async def run(tmp_path):
    """Starts processes on one store; they end with the test."""
    started = []

    async def begin(**options):
        started.append(await start(tmp_path, **options))
        return started[-1]

    yield begin
    for process in started:
        await process.close()


async def label(process, ids, label_):
    return await process.ask("POST", "/feedback", {"items": [{"id": one, "label": label_} for one in ids]})


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


async def decide_rightly(process, count, *, wrong=0, **body):
    """Decisions of which the first `wrong` get another label than was decided."""
    answers = [await process.decide(**body) for _ in range(count)]
    for index, answer in enumerate(answers):
        right = answer["decision"]
        await label(process, [answer["id"]], "sales" if index < wrong else right)


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


async def test_swaps_fall_between_requests_and_a_renewal_undoes_no_rollback(run, monkeypatch):
    process = await run()
    known = {}

    async def note():
        answer = await process.decide()
        known[answer["calibration"]["bundle"]] = answer["certificate"]
        await label(process, [answer["id"]], answer["decision"])

    async def swap():
        for number in (1, 2) * 5:
            await process.ask("POST", "/tasks/route/rollback", {"version": number})

    await note()
    await decide_rightly(process, 150)
    assert (await process.ask("POST", "/tasks/route/recertify"))["version"] == 2
    await note()
    answers, _ = await asyncio.gather(asyncio.gather(*(process.decide() for _ in range(60))), swap())
    assert len(known) == 2
    for answer in answers:
        # Every answer is one bundle's, with that one's certificate.
        assert (answer["verdict"], answer["certificate"]) == ("trust", known[answer["calibration"]["bundle"]])

    await label(process, [answer["id"] for answer in answers], answers[0]["decision"])
    await decide_rightly(process, 100)
    certify, loop = renewal.certify, asyncio.get_running_loop()

    def slowly(*asked):
        back = process.ask("POST", "/tasks/route/rollback", {"version": 1})
        asyncio.run_coroutine_threadsafe(back, loop).result(20)
        return certify(*asked)

    monkeypatch.setattr(renewal, "certify", slowly)
    refused = await process.ask("POST", "/tasks/route/recertify", status=409)
    assert "became active meanwhile" in refused["detail"]
    versions = (await process.ask("GET", "/tasks/route/bundles"))["versions"]
    assert [one["active"] for one in versions] == [True, False]
    assert (await process.decide())["calibration"]["bundle"] == versions[0]["bundle"]


async def test_a_bundle_made_by_a_caller_is_a_version_of_that_key(run):
    process = await run(admin_keys=("chief",))
    rows = [{"input": f"row {i}", "label": ("billing", "sales")[i % 5 == 0]} for i in range(60)]
    async with process.client() as client:
        client.headers["Authorization"] = "Bearer chief"
        made = await client.post("/tasks/route/calibrate", json={"rows": rows})
        assert made.status_code == 200, made.text
        policy = await client.put("/tasks/route/policy", json={"kind": "certified"})
        first, second = (await client.get("/tasks/route/bundles")).json()["versions"]
    assert (first["adopted_by"], second["adopted_by"]) == (None, policy.json()["changed_by"])
    assert (second["bundle"], second["active"]) == (made.json()["bundle"], True)


async def test_a_new_bundle_lies_where_bundles_do_when_a_version_of_the_store_is_served(run, tmp_path):
    process = await run()
    files = bundle_files(issued=certificates(), **{"provenance.json": b'{"rows": 1}'})
    await process.watch.shelf.adopt("route", Calibrated.of(make_bundle(tmp_path / "elsewhere", files)), "me")
    rows = [{"input": f"row {i}", "label": ("billing", "sales")[i % 5 == 0]} for i in range(60)]
    made = await process.ask("POST", "/tasks/route/calibrate", {"rows": rows})
    (place,) = (tmp_path / "bundles").iterdir()
    assert (place.name, read_bundle(place).id) == ("route", made["bundle"])


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


@pytest.mark.parametrize("trust", [0.0, 0.01])
async def test_a_certificate_that_no_audit_watches_is_warned_of_at_the_start_and_when_adopted(run, caplog, trust):
    process = await run(task=replace(AUDITED, audit=AuditSpec(trust, 1.0, 1.0)))
    said = "the certificate of a task is not watched"
    assert (said in caplog.text) == (trust == 0.0)
    caplog.clear()
    await process.ask("POST", "/tasks/route/rollback", {"version": 1})
    assert (said in caplog.text) == (trust == 0.0)


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


async def test_changes_are_posted_signed_and_again_until_they_are_taken():
    received, done = [], asyncio.Event()

    async def receiver(request):
        received.append(request)
        if len(received) < 3:
            return httpx.Response(503)
        done.set()
        return httpx.Response(204)

    hook = Webhook("http://hook.test/", "secret", retries_s=(0.0, 0.0), transport=httpx.MockTransport(receiver))
    sending = asyncio.create_task(hook.run())
    hook.tell("certificate.withdrawn", {"task": "route"})
    async with asyncio.timeout(20):
        await done.wait()
    sending.cancel()
    assert len({request.headers["X-Demur-Event"] for request in received}) == 1
    for request in received:
        body = request.content
        at = int(request.headers["X-Demur-Signature"].split(",")[0].removeprefix("t="))
        assert request.headers["X-Demur-Signature"] == signature("secret", body, at)
        assert signature("other", body, at) != signature("secret", body, at)
        assert json.loads(body)["event"] == "certificate.withdrawn"


async def test_a_receiver_that_never_answers_holds_nothing_up(run, caplog):
    asked, body = asyncio.Event(), {}

    async def silent(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        body.update(json.loads(await reader.readexactly(length)))
        asked.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(silent, "127.0.0.1") as receiver:
        port = receiver.sockets[0].getsockname()[1]
        process = await run(webhook_url=f"http://127.0.0.1:{port}/", webhook_secret="secret")
        process.watch.start()
        await decide_rightly(process, 25, wrong=25)
        async with asyncio.timeout(20):
            await asked.wait()
        assert (body["event"], body["task"], body["audits"] > 5) == ("certificate.withdrawn", "route", True)
        assert "a certificate is withdrawn" in caplog.text
        # The event hangs, and decisions, labels and metrics go on.
        async with asyncio.timeout(5):
            answer = await process.decide()
            assert answer["reason"] == "certificate_withdrawn"
            assert (await label(process, [answer["id"]], "sales"))["items"][0]["status"] == "stored"
            assert (await process.metrics())['demur_certificate_valid{task="route"}'] == 0
            await process.watch.aclose()


async def test_a_delivery_that_fails_in_any_way_is_tried_again_and_holds_up_no_other(caplog):
    taken, tries = asyncio.Event(), []

    async def receiver(request):
        event = json.loads(request.content)["event"]
        if event == "certificate.valid":
            taken.set()
            return httpx.Response(204)
        tries.append(event)
        raise (OverflowError, UnicodeError, httpx.InvalidURL)[len(tries) % 3]("no HTTPError")

    hook = Webhook("http://hook.test/", "s", retries_s=(0.0, 0.0, 3600.0), transport=httpx.MockTransport(receiver))
    sending = asyncio.create_task(hook.run())
    hook.tell("certificate.withdrawn", {})
    async with asyncio.timeout(20):
        while len(tries) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    hook.tell("certificate.valid", {})
    async with asyncio.timeout(20):
        await taken.wait()
    assert not sending.done()
    assert {record.fields["problem"] for record in caplog.records} == {"OverflowError", "UnicodeError", "InvalidURL"}
    sending.cancel()


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
