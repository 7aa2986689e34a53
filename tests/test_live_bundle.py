"""A bundle on the real engine: served where it fits, and nowhere else."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from demur.calibration import TemperatureScaling, certify_verdicts
from demur.clients import Client, Conflict
from demur.decision.bundle import PINS, Bundle, write_bundle
from demur.decision.question import Option
from demur.decision.task import LengthHandling, Mode, PromptLayout, ReadoutKind, ReadoutSpec, Task, ThoughtSpec
from demur.decision.taskfile import load_task
from demur.server.bundles import read_bundles
from demur.server.calibrated import pins, policy_hash
from demur.server.decide import DecidePipeline
from demur.server.settings import Settings
from demur.server.types import DecideRequest, Decision
from tests.server.bundled import bundle_files

if TYPE_CHECKING:
    from tests.live import Live

pytestmark = pytest.mark.engine

TASK = Path("examples/tasks/confirmation.yaml")
INPUTS = [f"{start} {end}" for start in ("yes", "no", "maybe", "sure") for end in ("please", "thanks", "i think", "ok")]


async def readings(live: "Live", task: Task) -> list[Decision]:
    pipeline = DecidePipeline(live.engine, max_input_tokens=1000)
    return await asyncio.gather(*(pipeline.decide(DecideRequest(task.spec, text, task)) for text in INPUTS))


def make_bundle(live: "Live", directory: Path, task: Task) -> Bundle:
    """Fitted on real readings that are repeated with made-up labels; certified from the score of half of them on."""
    decisions = live.run(readings(live, task))
    logprobs = np.tile(np.log([decision.probabilities for decision in decisions]), (10, 1))
    labels = np.random.default_rng(0).integers(0, 3, len(logprobs))
    scores = np.sort([decision.probabilities.max() for decision in decisions])
    rows = np.tile(scores, 40)
    issued = certify_verdicts(rows, rows >= scores[len(scores) // 2], score_name="top_probability")
    files = bundle_files(calibrator=TemperatureScaling().fit(logprobs, labels), issued=issued)
    prompt = live.pipeline.prompts.compile(task.spec)
    pinned = pins(task.spec, prompt, live.engine.identity, live.pipeline.room(prompt))
    # The label mass limit of a text readout is another than that of letters.
    certificate = json.loads(files["certificate.json"])
    certificate["policy_hash"] = policy_hash(task.policy, prompt.plan.kind)
    files |= {"certificate.json": json.dumps(certificate).encode(), "task.yaml": TASK.read_bytes()}
    return write_bundle(directory, task=task.name, pins=pinned, files=files)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(TASK)


@pytest.fixture(scope="module")
def bundles(live: "Live", task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles")
    make_bundle(live, directory / task.name, task)
    return directory


def test_a_bundle_is_served(live: "Live", bundles: Path, task: Task) -> None:
    (calibrated,) = read_bundles(bundles).values()
    assert calibrated.guarantee is not None
    assert calibrated.guarantee.trusted is not None
    threshold = calibrated.guarantee.trusted.threshold
    assert threshold is not None
    server = live.serve(Settings(bundles=bundles))
    try:
        with Client(server.url) as client:
            items = [item.unwrap() for item in client.decide_batch(INPUTS, task=task.name)]
            verdicts = {answer.verdict for answer in items}
            assert "trust" in verdicts
            assert len(verdicts) > 1
            for answer in items:
                assert answer.calibration is not None
                assert answer.certificate is not None
                assert answer.calibration.bundle == calibrated.bundle.id
                assert answer.certificate.threshold == threshold
                assert answer.p_correct == pytest.approx(max(answer.probabilities.values()))
                assert answer.score is not None
                assert answer.trusted == (round(answer.score, 6) >= threshold)
            assert client.decide(INPUTS[0], task=task.name, policy={"trust_at": 0.5}).certificate is None
            inline = client.decide(INPUTS[0], question=task.spec.question.text, options=list(task.spec.question.names))
            assert (inline.reason, inline.calibration) == ("uncalibrated", None)
            live_policy(client, task.name)
            assert client.calibration(task.name).valid
            assert client.diagram(task.name) == "<svg/>"
        page = httpx.get(f"{server.url}/metrics").text
        assert f'demur_certificate_valid{{task="{task.name}"}} 1.0' in page
        assert f'demur_p_correct_count{{task="{task.name}"}}' in page
    finally:
        live.stop(server)


def live_policy(client: Client, name: str) -> None:
    loose = client.set_policy(name, trust_at=0.01, version=0)
    assert (loose.version, loose.certificate) == (1, None)
    answer = client.decide(INPUTS[0], task=name)
    assert (answer.verdict, answer.certificate) == ("trust", None)
    with pytest.raises(Conflict):
        client.set_policy(name, kind="certified", version=0)
    listed = loose.certified_thresholds[0]
    assert client.set_policy(name, trust_at=listed, scale="score").certificate is not None
    certificate = client.decide(INPUTS[0], task=name).certificate
    assert certificate is not None
    assert certificate.threshold == listed
    client.set_policy(name, kind="certified")


def changes(task: Task) -> dict[str, Task]:
    spec, question = task.spec, task.spec.question
    renamed = (Option("Yes", question.options[0].description), *question.options[1:])
    return {
        "question": replace(task, spec=replace(spec, question=replace(question, text=question.text + " Say."))),
        "options": replace(task, spec=replace(spec, question=replace(question, options=renamed))),
        "labels": replace(task, spec=replace(spec, question=replace(question, options=question.options[::-1]))),
        "readout": replace(task, spec=replace(spec, readout=ReadoutSpec(ReadoutKind.TEXT, LengthHandling.SUM))),
        "mode": replace(task, spec=replace(spec, mode=Mode.REASONED, thought=ThoughtSpec(8))),
        "prompt": replace(task, spec=replace(spec, layout=PromptLayout(input_title="Answer"))),
    }


@pytest.mark.parametrize("part", PINS)
def test_whatever_was_pinned_is_caught(live: "Live", bundles: Path, task: Task, part: str) -> None:
    """The model's parts by their hashes, the task's by the file that changed."""
    pipeline = DecidePipeline(live.engine, max_input_tokens=1000)
    changed = changes(task).get(part, task)
    if changed is task:
        pipeline.engine = other_model(live.engine, **{part: "0" * 64})
    decision = live.run(decide(pipeline, bundles, changed))
    assert (decision.verdict, decision.reason) == ("defer", "calibration_mismatch")
    assert decision.reason_detail is not None
    assert part in decision.reason_detail.replace(",", "").split()
    assert (decision.p_correct, decision.calibration, decision.certificate) == (None, None, None)


async def decide(pipeline: DecidePipeline, bundles: Path, task: Task) -> Decision:
    pipeline.adopt(pipeline.prepare([task], read_bundles(bundles)))
    return await pipeline.decide(DecideRequest(task.spec, INPUTS[0], task))


def other_model(engine: Any, **identity: str) -> Any:
    """The same engine under another identity."""

    class Other:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

    other = Other()
    other.identity = replace(engine.identity, **identity)  # type: ignore[attr-defined]
    return other
