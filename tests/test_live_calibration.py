"""From labelled rows to verdicts on the real engine: the command line, the route, and the bundle that ships."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from demur.decision.bundle import read_bundle
from demur.decision.rowhash import row_hash
from demur.decision.taskfile import load_task
from demur.server.calibrated import Calibrated
from demur.server.decide import DecidePipeline
from demur.server.settings import Settings
from demur.server.types import DecideRequest, Verdict
from tests.process.server import BIN

if TYPE_CHECKING:
    from tests.live import Live, LiveServer

pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).parents[1] / "examples"
TASK = EXAMPLES / "tasks" / "voice_intent.yaml"
BUNDLE = EXAMPLES / "bundles" / "voice_intent"
#: The README shows these.
SHOWN = (
    "how many calories are in an apple",
    "book me a room and a table for tonight",
    "what is the meaning of life",
)


def sample(path: Path, n: int) -> Path:
    lines = (EXAMPLES / "data" / "voice_intent.jsonl").read_text(encoding="utf-8").splitlines()[:n]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def demur(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "demur"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_calibrate_and_evaluate_through_a_server(
    live: "Live", demo_server: "LiveServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = sample(tmp_path / "rows.jsonl", 121), tmp_path / "bundle"
    first, *others = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join([first, *others, others[0]]), encoding="utf-8")
    # As though the checkpoint had learned the first row.
    trained_on = frozenset({row_hash(json.loads(first)["input"])})
    monkeypatch.setattr(live.engine, "identity", replace(live.engine.identity, trained_on=trained_on))
    left_out = {"duplicates": 1, "trained_on": 1, "too_long": 0}
    asked = ("--task", TASK, "--data", data, "--url", demo_server.url)
    done = demur("calibrate", *asked, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "voice_intent: trusts " in done.stdout
    assert "121 of 121 rows read" in done.stderr
    bundle = read_bundle(out)
    assert bundle.task == "voice_intent"
    assert bundle.document("provenance.json")["counts"].items() >= {"fitted": 120, **left_out}.items()
    assert bundle.document("report.json")["left_out"] == left_out
    # The reads are kept, so that the second run asks for none.
    again = demur("calibrate", *asked, "--out", out, "--replace", "--alpha", 0.2)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, "rows.jsonl: 121 of 121 rows read")
    report = demur("evaluate", *asked, "--out", tmp_path / "report", "--bundle", out)
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    figures = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert (figures["n"], figures["left_out"]) == (120, left_out)
    assert "1 that occurred before, 1 that the checkpoint was trained on." in page
    # The trained model may need no calibrator at all.
    assert figures["after"]["ece_quantile_15"] <= figures["before"]["ece_quantile_15"] + 1e-9


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--alpha", 1.5), 2, "--alpha is 1.5"),
        (("--beta", 0.01), 2, "--beta is 0.01"),
        (("--delta", 0), 2, "--delta is 0.0"),
        (("--model", "models/demo"), 2, "give either --model or --url"),
    ],
)
def test_options_that_cannot_be(
    demo_server: "LiveServer", tmp_path: Path, options: tuple[object, ...], status: int, said: str
) -> None:
    data = sample(tmp_path / "rows.jsonl", 30)
    done = demur(
        "calibrate", "--task", TASK, "--data", data, "--url", demo_server.url, "--out", tmp_path / "b", *options
    )
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert not (tmp_path / "b").exists()


def test_the_route_makes_a_bundle_and_serves_it(live: "Live", tmp_path: Path) -> None:
    rows = [json.loads(line) for line in sample(tmp_path / "rows.jsonl", 100).read_text().splitlines()]
    (tmp_path / "bundles").mkdir()
    server = live.serve(Settings(bundles=tmp_path / "bundles", admin_keys=("chief",), api_keys=("clerk",)))
    try:
        with httpx.Client(base_url=server.url, timeout=120, headers={"Authorization": "Bearer chief"}) as client:
            path = "/tasks/voice_intent/calibrate"
            assert client.post(path, json={"rows": rows}, headers={"Authorization": "Bearer clerk"}).status_code == 403
            wrong = client.post(path, json={"rows": [*rows, {"input": "x", "label": "nothing"}], "alpha": 0.05})
            assert (wrong.status_code, "rows:101: label" in wrong.json()["detail"]) == (422, True)
            range_ = client.post(path, json={"rows": rows, "alpha": 1.0})
            assert (range_.status_code, range_.json()["faults"][0]["path"]) == (422, ["alpha"])
            ask = {"task": "voice_intent", "input": "add milk to my shopping list"}
            assert client.post("/decide", json=ask).json()["calibration"] is None
            given = {"rows": rows, "unlabelled": [rows[0], {"input": "tell me a story"}], "valid_days": 3}
            made = client.post(path, json=given).raise_for_status().json()
            answer = client.post("/decide", json=ask).json()
            assert answer["calibration"]["bundle"] == made["bundle"]
            bundle = read_bundle(tmp_path / "bundles" / "voice_intent")
            assert bundle.id == made["bundle"]
            assert bundle.document("report.json")["left_out"]["unlabelled_too"] == 1
            assert bundle.document("provenance.json")["data"]["unlabelled"]["kept"] == 1
            # Raw readings leave the bundle aside.
            read = client.post("/tasks/voice_intent/readings", json={"inputs": [ask["input"], ""]}).json()
            assert len(read["items"][0]["scores"]) == 8
            assert read["pins"] == read_bundle(tmp_path / "bundles" / "voice_intent").pins
    finally:
        live.stop(server)


SLICED = """name: reply
question: Does the speaker mean yes or no?
options: ["yes", "no"]
slice_by: channel
readout: text
"""


def test_slices_are_certified_and_served_on_both_wires(live: "Live", tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "reply.yaml").write_text(SLICED)
    (tmp_path / "bundles").mkdir()
    server = live.serve(Settings(bundles=tmp_path / "bundles", admin_keys=("chief",)), tasks=str(tmp_path / "tasks"))
    channels = ["web"] * 30 + ["phone"] * 10
    inputs = [{"channel": channel, "text": f"answer {n}"} for n, channel in enumerate(channels)]
    try:
        with httpx.Client(base_url=server.url, timeout=120, headers={"Authorization": "Bearer chief"}) as client:
            answers = client.post("/decide", json={"task": "reply", "inputs": inputs}).raise_for_status().json()
            decided = [item["answer"]["decision"] for item in answers["items"]]
            # By web the labels agree with all decisions but one, by phone with none.
            other = {"yes": "no", "no": "yes"}
            labels = [*decided[:29], *(other[name] for name in decided[29:])]
            rows = [{"input": value, "label": label} for value, label in zip(inputs, labels, strict=True)]
            promise = {"alpha": 0.5, "beta": 0.9}
            made = client.post("/tasks/reply/calibrate", json={"rows": rows, **promise}).raise_for_status().json()
            slices = made["slices"]
            assert (made["trusted"], slices["phone"]["trusted"]["threshold"]) == (None, None)
            threshold = slices["web"]["trusted"]["threshold"]
            assert threshold is not None
            answers = client.post("/decide", json={"task": "reply", "inputs": inputs}).raise_for_status().json()
            web, phone = ([item["answer"] for item in half] for half in (answers["items"][:30], answers["items"][30:]))
            trusted = [answer for answer in web if answer["verdict"] == "trust"]
            assert trusted == [answer for answer in web if round(answer["score"], 6) >= threshold] != []
            assert {answer["certificate"]["slice"] for answer in trusted} == {"web"}
            assert [answer for answer in phone if answer["verdict"] == "trust" or answer["certificate"]] == []
            body = {"task": "reply", "input": "answer 1"}
            unknown = client.post("/decide", json=body).raise_for_status().json()
            assert (unknown["verdict"], unknown["reason"]) == ("defer", "unknown_slice")
            # The other wire: the same decision, of a state that does not name its slice.
            sure = inputs[web.index(trusted[0])]
            questions = {
                "named": {"type": "task", "task": "reply"},
                "phone": {"type": "task", "task": "reply", "slice": "phone"},
            }
            asked = {"model": live.engine.identity.name, "state": sure, "questions": questions}
            told = client.post("/v1/systemone", json=asked).raise_for_status().json()["answers"]
            assert told["named"]["x_demur"]["certificate"] == trusted[0]["certificate"]
            assert told["named"]["probabilities"] == pytest.approx(trusted[0]["probabilities"], abs=1e-4)
            # The state says another slice than the question.
            assert told["phone"]["x_demur"]["reason"] == "unknown_slice"
    finally:
        live.stop(server)


def test_the_bundle_that_ships_trusts_reviews_and_defers(live: "Live", tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "voice_intent")
    bundle, task = read_bundle(tmp_path / "voice_intent"), load_task(TASK)
    assert bundle.files["task.yaml"] == TASK.read_bytes()

    async def verdicts() -> list[Verdict]:
        pipeline = DecidePipeline(live.engine, max_input_tokens=4096)
        prepared = pipeline.prepare([task], {"voice_intent": Calibrated.of(bundle)})
        assert prepared.bundles["voice_intent"].mismatches == ()
        await pipeline.warm(prepared)
        pipeline.adopt(prepared)
        asked = [DecideRequest(task.spec, text, task, task.policy) for text in SHOWN]
        return [(await pipeline.decide(request)).verdict for request in asked]

    assert live.run(verdicts()) == [Verdict.TRUST, Verdict.REVIEW, Verdict.DEFER]
