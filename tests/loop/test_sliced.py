"""Slices while they serve: a process each, and renewal of one that leaves the others as they are."""

import json
from dataclasses import replace

import pytest

from demur.decision.task import PolicySpec, ReadoutKind
from demur.server.calibrated import policy_hash
from demur.server.certificate_file import certificate_document
from tests.server.bundled import bundle_files, certificates, make_bundle

from .servers import AUDITED, decide_rightly, label, start

SLICED = replace(AUDITED, slice_by="channel")
SLICES = ("web", "phone")


@pytest.fixture
async def run(tmp_path):
    """Starts processes on one store and a bundle that trusts both slices."""
    document = certificate_document(
        dict.fromkeys(SLICES, certificates()),
        slice_by="channel",
        policy_hash=policy_hash(PolicySpec(), ReadoutKind.LETTER),
        attempts=1,
    )
    files = bundle_files(**{"certificate.json": json.dumps(document).encode()})
    make_bundle(tmp_path / "bundles" / "route", files, task=SLICED)
    started = []

    async def begin():
        started.append(await start(tmp_path, task=SLICED))
        return started[-1]

    yield begin
    for process in started:
        await process.close()


async def reasons(process):
    """Why each slice is trusted or not."""
    return {part: (await process.decide(slice=part))["reason"] for part in SLICES}


async def test_one_slice_is_withdrawn_and_renewed_and_the_other_goes_on(run):
    process = await run()
    await decide_rightly(process, 20, slice="web")
    await decide_rightly(process, 25, wrong=25, slice="phone")
    broken = {"web": "above_trust_threshold", "phone": "certificate_withdrawn"}
    assert await reasons(process) == await reasons(await run()) == broken
    shown = await process.metrics()
    for part, state in (("web", "valid"), ("phone", "withdrawn")):
        assert shown[f'demur_certificate_state{{slice="{part}",state="{state}",task="route"}}'] == 1
    assert shown['demur_trusted_risk{bound="estimate",slice="web",task="route"}'] == 0
    assert (await process.ask("GET", "/tasks/route/calibration"))["states"] == {"web": "valid", "phone": "withdrawn"}
    before = {one.record.slice: one for one in process.watch.live.view.guarantees.values()}

    # Rows of both slices stand for the traffic, and those of one are too few for a certificate.
    assert (await process.ask("POST", "/tasks/route/recertify"))["outcome"] == "too_few_audits"
    await label(process, [item["id"] for item in (await process.ask("GET", "/review"))["items"]], "billing")
    await decide_rightly(process, 150, slice="phone")
    await decide_rightly(process, 10, slice="web")
    renewed = await process.ask("POST", "/tasks/route/recertify")
    assert (renewed["outcome"], renewed["attempt"], renewed["threshold"]) == ("adopted", 1, None)
    assert renewed["delta"] == pytest.approx(0.05 / 2)
    assert renewed["slices"]["web"] is None
    trusted = dict.fromkeys(SLICES, "above_trust_threshold")
    assert await reasons(process) == await reasons(await run()) == trusted
    answer = await process.decide(slice="phone")
    assert answer["certificate"]["threshold"] == renewed["slices"]["phone"]
    assert answer["certificate"]["slice"] == "phone"
    # The certificate that stays has the process that it had, the new one a new one.
    served = process.registry.bundles["route"].calibrated.guarantee.slices
    assert (served["web"].key == before["web"].record.key, served["phone"].key == before["phone"].record.key) == (
        True, False
    )  # fmt: skip
    assert process.watch.live.view.guarantees[served["web"].key].audits > before["web"].audits

    back = await process.ask("POST", "/tasks/route/rollback", {"version": 1})
    assert {one["slice"]: one["state"] for one in back["certificates"]} == {"web": "valid", "phone": "withdrawn"}
    assert await reasons(process) == broken


async def test_a_certificate_of_slices_that_nothing_renews_is_not_replaced(run):
    process = await run()
    served = process.registry.bundles["route"].calibrated.bundle.id
    await decide_rightly(process, 20, wrong=20, slice="web")
    await decide_rightly(process, 100, wrong=10, slice="web")
    for number in (1, 2):
        tried = await process.ask("POST", "/tasks/route/recertify")
        assert (tried["outcome"], tried["attempt"], tried["version"]) == ("nothing_certified", number, None)
        assert tried["slices"] == {"web": None}
        assert tried["delta"] == pytest.approx(0.05 / (number * (number + 1)))
    assert process.registry.bundles["route"].calibrated.bundle.id == served
