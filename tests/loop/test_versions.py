"""Bundles as versions: made, swapped in and rolled back between two requests."""

import asyncio

from demur.decision.bundle import read_bundle
from demur.server.calibrated import Calibrated
from demur.server.loop import renewal
from tests.server.bundled import bundle_files, certificates, make_bundle

from .servers import decide_rightly, label


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
