"""Who is told of a change: signed, again until it is taken, and without holding anything up."""

import asyncio
import json

import httpx

from demur.server.loop.webhook import Webhook, signature

from .servers import decide_rightly, label


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
