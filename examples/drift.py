"""The closed loop at work: a certificate breaks, is withdrawn, and is renewed. `make demo-drift` runs this.

A real server decides real requests from `examples/data/voice_intent.jsonl`; every decision is drawn for audit, and the
sample's own labels go back through the API, as a person's would.

1. Traffic as the certificate knows it: requests drawn evenly from the sample.
2. A shift: most requests now come from the two intents whose trusted decisions were wrong most often in part 1, as if
   those customers had found the service. It is chosen to hurt; nothing else changes. More of what is trusted is wrong.
3. The audits show it, and the server withdraws the certificate: from that decision on nothing is trusted.
4. The operator recertifies on audits drawn since then: a stricter threshold holds, and trust returns for fewer.

Writes `drift.png`, `drift.svg` and the table below into `--out`. Two simplifications: every decision is audited, where
a real task draws 5%, and labels come at once, where a week of real time would pass.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from demur.calibration.plot_style import BLUE, INK, ORANGE, RED, Plot, new_figure
from demur.clients import Client

TASK = "voice_intent"
BATCH = 20
#: Requests at most in each part, and audits after which the operator tries to recertify.
CALM, SHIFTED, TRY_EVERY, RENEWED = 400, 500, 100, 300
#: Share of the shifted traffic that comes from the hardest intents.
SHARE = 0.8


@dataclass(frozen=True)
class Step:
    """What was seen after a batch of requests."""

    requests: int
    audits: int
    state: str
    risk: float | None
    upper: float
    recent: float
    trusted: float
    log_evalue: float


@contextmanager
def server(port: int, folder: Path) -> Iterator[str]:
    """`demur serve` with the demo model and every decision drawn for audit."""
    (folder / "tasks").mkdir()
    text = Path(f"examples/tasks/{TASK}.yaml").read_text()
    (folder / "tasks" / f"{TASK}.yaml").write_text(text + "audit: {trust: 1, review: 1, defer: 1}\n")
    command = [
        Path(sys.executable).parent / "demur",
        "serve",
        "--demo",
        "--port",
        str(port),
        "--tasks",
        folder / "tasks",
        "--bundles",
        "examples/bundles",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--state-dir", folder / "state"], stdout=log, stderr=log)
    try:
        client = Client(f"http://127.0.0.1:{port}")
        while not client.ready():
            if process.poll() is not None:
                sys.exit((folder / "log").read_text()[-2000:])
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Story:
    """Sends traffic, gives labels back and keeps what was seen."""

    def __init__(self, url: str) -> None:
        self.client = Client(url, timeout=120)
        self.url = url
        self.steps: list[Step] = []
        self.requests = 0
        self.seen: list[tuple[str, bool, bool]] = []  # label, trusted, wrong
        self._last: deque[bool] = deque(maxlen=100)

    def send(self, rows: Sequence[dict[str, str]]) -> Step:
        """Decides, labels, and reads the metrics."""
        answers = self.client.decide_batch([row["input"] for row in rows], task=TASK)
        pairs = [(row, item.unwrap()) for row, item in zip(rows, answers, strict=True)]
        self.client.feedback_many([(answer.id, row["label"]) for row, answer in pairs])
        for row, answer in pairs:
            wrong = answer.decision != row["label"]
            self.seen.append((row["label"], answer.trusted, wrong))
            if answer.trusted:
                self._last.append(wrong)
        self.requests += len(rows)
        page = self._metrics()
        states = [state for (name, state), value in page.items() if name == "certificate_state" and value == 1]
        step = Step(
            self.requests,
            sum(trusted for _, trusted, _ in self.seen),
            states[0] if states else "none",
            page.get(("trusted_risk", "estimate")),
            page.get(("trusted_risk", "upper"), 1.0),
            sum(self._last) / len(self._last) if self._last else 0.0,
            sum(answer.trusted for _, answer in pairs) / len(pairs),
            page.get(("guarantee_log_evalue", ""), 0.0),
        )
        self.steps.append(step)
        return step

    def _metrics(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            match = re.match(rf'demur_(\w+)\{{(.*task="{TASK}".*)\}} (\S+)$', line)
            if match:
                which = re.search(r'(?:state|bound)="(\w+)"', match[2])
                found[match[1], which[1] if which else ""] = float(match[3])
        return found


def hardest(story: Story, count: int) -> list[str]:
    """The intents whose trusted decisions were wrong most often so far."""
    trusted = Counter(label for label, trusted, _ in story.seen if trusted)
    wrong = Counter(label for label, trusted, is_wrong in story.seen if trusted and is_wrong)
    return sorted(trusted, key=lambda label: -wrong[label] / trusted[label])[:count]


def tell(url: str) -> tuple[Story, list[tuple[str, int, str]], list[str]]:
    """Plays all four parts; events as (what, after how many requests, in words)."""
    rows = [json.loads(line) for line in Path(f"examples/data/{TASK}.jsonl").read_text().splitlines()]
    rng, story, events = random.Random(7), Story(url), []  # noqa: S311
    print("1. traffic as the certificate knows it", flush=True)
    while story.requests < CALM:
        story.send(rng.sample(rows, BATCH))
    hard = hardest(story, 2)
    few = [row for row in rows if row["label"] in hard]
    print(f"2. the shift: {SHARE:.0%} of the requests are now about {' and '.join(hard)}", flush=True)
    events.append(("shift", story.requests, "the traffic shifts"))
    audits_before = story.steps[-1].audits

    def shifted() -> list[dict[str, str]]:
        return [rng.choice(few) if rng.random() < SHARE else rng.choice(rows) for _ in range(BATCH)]

    while story.steps[-1].state == "valid" and story.requests < CALM + SHIFTED:
        story.send(shifted())
    audits = story.steps[-1].audits - audits_before
    if story.steps[-1].state != "withdrawn":
        raise SystemExit(f"the certificate is still {story.steps[-1].state} after {audits} audits")
    print(f"3. withdrawn, {audits} audits of trusted decisions after the shift", flush=True)
    events.append(("withdrawn", story.requests, f"withdrawn after {audits} audits"))
    attempts = 0
    while attempts < 6:
        for _ in range(TRY_EVERY // BATCH):
            story.send(shifted())
        renewal = story.client.recertify(TASK, deadline=120)
        attempts += renewal.attempt is not None
        print(f"   recertify: {renewal.outcome} {renewal.model_extra}", flush=True)
        if renewal.outcome == "adopted":
            break
    else:
        raise SystemExit("nothing was certified")
    print("4. trust returns", flush=True)
    events.append(("renewed", story.requests, f"renewed at attempt {renewal.attempt}"))
    until = story.requests + RENEWED
    while story.requests < until:
        story.send(shifted())
    return story, events, hard


def draw(story: Story, events: Sequence[tuple[str, int, str]], alpha: float) -> Plot:
    """Risk against alpha, and how much is trusted, over the requests."""
    figure, (risk, trust) = new_figure(
        "A broken guarantee is withdrawn, and renewed", "real requests, every decision audited", height=5.6, rows=(3, 1)
    )
    x = [step.requests for step in story.steps]
    risk.plot(x, [step.recent for step in story.steps], color=ORANGE, label="last 100 trusted decisions")
    risk.plot(
        x,
        [step.risk if step.risk is not None else float("nan") for step in story.steps],
        color=BLUE,
        label="since the certificate",
    )
    risk.axhline(alpha, color=RED, linestyle="--", linewidth=1, label="alpha")
    risk.set_ylim(0, 1.15 * risk.get_ylim()[1])
    risk.set_ylabel("error among trusted")
    trust.step(x, [step.trusted for step in story.steps], where="pre", color=INK)
    trust.set_ylim(0, 1)
    trust.set_ylabel("trusted")
    trust.set_xlabel("requests")
    for _, at, words in events:
        for axes in (risk, trust):
            axes.axvline(at, color=INK, linewidth=0.8, linestyle=":")
        risk.annotate(words, (at, risk.get_ylim()[1]), xytext=(3, -3), textcoords="offset points", va="top", fontsize=8)
    risk.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False)
    return Plot(figure, "; ".join(f"{words} at request {at}" for _, at, words in events))


def table(story: Story, events: Sequence[tuple[str, int, str]]) -> str:
    """The parts of the story, a row each."""
    ends = [at for _, at, _ in events] + [story.requests]
    names = ("as certified", "shifted, still trusted", "withdrawn", "renewed")
    lines = ["| part | requests | trusted | wrong among trusted | state at its end |", "|---|---|---|---|---|"]
    start = 0
    for name, end in zip(names, ends, strict=True):
        part = story.seen[start:end]
        trusted = [wrong for _, is_trusted, wrong in part if is_trusted]
        state = next(step.state for step in story.steps if step.requests == end)
        share = f"{sum(trusted) / len(trusted):.3f}" if trusted else "-"
        lines.append(f"| {name} | {len(part)} | {len(trusted) / max(len(part), 1):.3f} | {share} | {state} |")
        start = end
    return "\n".join(lines) + "\n"


def main() -> None:
    """Tell the story and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for figure and table")
    parser.add_argument("--port", type=int, default=8017)
    wanted = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, server(wanted.port, Path(folder)) as url:
        story, events, _ = tell(url)
        alpha = Client(url).calibration(TASK).certificate["trusted"]["alpha"]
    wanted.out.mkdir(parents=True, exist_ok=True)
    plot, text = draw(story, events, alpha), table(story, events)
    (wanted.out / "drift.png").write_bytes(plot.png())
    (wanted.out / "drift.svg").write_text(plot.svg())
    (wanted.out / "drift.md").write_text(text)
    print(f"\n{text}\n{wanted.out}/drift.png, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
