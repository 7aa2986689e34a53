"""TypeSafe's contract, judged by its conformance suite and used by its SDK over a real port."""

import asyncio

import pytest
from jevcompat import runner, spec
from typesafe_sdk import (
    AsyncTypeSafeClient,
    Choice,
    Noul,
    RetryPolicy,
    Score,
    TypeSafeAuthenticationError,
    TypeSafeClient,
    TypeSafeNotFoundError,
    TypeSafeUnprocessableEntityError,
)

from .conftest import serving

QUESTIONS = {
    "refund": Noul(instructions="Is money asked back?", criteria={"true": "refunds", "false": None}),
    "team": Choice(instructions={"task": "Route."}, criteria={"Billing": ["invoices"], "기술": None}),
    "anger": Score(criteria=["calm", {"label": "angry"}]),
}


async def _report(rig, key):
    built = rig(**({"api_keys": key} if key else {}))
    async with serving(built.app) as url:
        return await asyncio.to_thread(runner.run, url, key=key, timeout=20)


async def test_conformance_without_and_with_a_key(rig):
    reports = [await _report(rig, key) for key in (None, "sesame")]
    for report in reports:
        assert not [(result.id, result.findings) for result in report.results if result.status == "fail"]
        assert report.verdict == "conformant"
    passed = {result.id for report in reports for result in report.results if result.status == "pass"}
    assert passed == set(spec.REQUIREMENTS)
    assert len(passed) == 48


@pytest.mark.parametrize("compression", ["zstd", False])
async def test_the_sdk_works_unmodified(rig, compression):
    built = rig(api_keys="sesame", max_body_bytes=200_000)
    state = {"mail": "I was charged twice. " * 5000}
    async with (
        serving(built.app) as url,
        AsyncTypeSafeClient(api_key="sesame", base_url=url, compression=compression) as client,
    ):
        reply = await client.system_one(state=state, questions=QUESTIONS)
        listed = await client.models.list()
    assert reply.model == "stub-model"
    assert reply.request_id
    assert 0 <= reply.nouls["refund"].noul <= 1
    assert set(reply.choices["team"].probabilities) == {"Billing", "기술"}
    assert reply.scores["anger"].legend == {0: "calm", 1: {"label": "angry"}}
    assert reply.usage.input_tokens
    assert {model.name for model in listed.models} == {"stub-model", "jev-latest", "other-name"}


async def test_the_blocking_sdk_understands_our_errors(rig):
    def use(url: str) -> None:
        once = RetryPolicy(max_retries=0)
        with TypeSafeClient(api_key="sesame", base_url=url, retry=once) as client:
            assert client.system_one(state="x", questions=QUESTIONS).nouls["refund"].noul >= 0
            with pytest.raises(TypeSafeNotFoundError):
                client.system_one(state="x", questions=QUESTIONS, model="gpt")
            with pytest.raises(TypeSafeUnprocessableEntityError):
                client.system_one(state="x", questions={"q": Choice(criteria={"only": None})})
        with (
            TypeSafeClient(api_key="wrong", base_url=url, retry=once) as client,
            pytest.raises(TypeSafeAuthenticationError),
        ):
            client.models.list()

    async with serving(rig(api_keys="sesame").app) as url:
        await asyncio.to_thread(use, url)
