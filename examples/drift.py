"""The closed loop at work: a certificate breaks, is withdrawn, and is renewed. `make demo-drift` runs this.

A real server decides real requests from `examples/data/voice_intent.jsonl`. It draws a quarter of its decisions for
audit; somebody takes those from the review queue, days later, and gives the sample's own labels through the API.

1. Traffic as the certificate knows it: every request of the sample once.
2. A shift: most requests now come from one group, as if those customers had found the service. The group is chosen to
   hurt, from what part 1 has shown: more of what is trusted is wrong, and a stricter threshold would still do.
3. The audits show it, and the server withdraws the certificate: from that decision on nothing is trusted.
4. The operator recertifies on audits drawn since then: a stricter threshold holds, and trust returns for fewer.

The clock is accelerated: a day lasts `DAY_S` seconds, for the labels' delay and for the server's deadline of a week
alike. Requests come as fast as the machine decides them. A real task draws 5%; here it is more, so that the story fits
into minutes.

Writes `drift.png`, `drift.svg` and the table below into `--out`.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from demur.calibration.plot_style import BLUE, INK, ORANGE, QUIET, RED, Plot, new_figure, percent_axis
from demur.clients import Client
from demur.server.demo_model import PLAIN_MODEL_NAME, export_demo_model

TASK = "voice_intent"
BATCH = 16
#: Seconds that a day lasts, the share of decisions that is drawn, and days until a drawn one gets its label.
DAY_S, RATE, DELAY_DAYS = 3.0, 0.25, (0.5, 3.0)
#: Requests at most under the shift, labels after which the operator tries to recertify, and requests after that.
SHIFTED, FIRST_TRY, TRY_EVERY, TRIES, RENEWED = 3000, 200, 150, 6, 400
#: A group: so many requests at least, and shares of the shifted traffic that it may have.
SMALLEST, SHARES = 20, (0.9, 0.75, 0.6, 0.45, 0.3)


@dataclass(frozen=True)
class Sent:
    """A request and its answer."""

    row: dict[str, str]
    score: float
    trusted: bool
    wrong: bool


@dataclass(frozen=True)
class Step:
    """What was seen after a batch.

    `risk` and `log_evalue` are the server's; `truth` is the error in the last 100 trusted, `trusted` a share of
    the last 48 requests.
    """

    day: float
    requests: int
    labels: int
    state: str
    risk: float
    truth: float
    trusted: float
    log_evalue: float


@dataclass(frozen=True)
class Event:
    """What happened, when."""

    day: float
    requests: int
    words: str


@dataclass(frozen=True)
class Shift:
    """Traffic of which `share` comes from the requests `rows`, in words."""

    words: str
    rows: tuple[int, ...]
    share: float


@contextmanager
def server(port: int, folder: Path) -> Iterator[str]:
    """`demur serve` with the demo model as it is before training, on the accelerated clock.

    The trained one is wrong too seldom for a shift to break its certificate. `examples/drift` holds the task's wording
    for the untrained one and its bundle.
    """
    model = export_demo_model(Path("models/plain"), plain=True)
    (folder / "tasks").mkdir()
    text = Path(f"examples/drift/{TASK}.yaml").read_text()
    (folder / "tasks" / f"{TASK}.yaml").write_text(f"{text}audit: {{trust: {RATE}, review: {RATE}, defer: {RATE}}}\n")
    command = [
        Path(sys.executable).parent / "demur",
        *("serve", "--model", model, "--model-name", PLAIN_MODEL_NAME, "--port", str(port)),
        *("--tasks", folder / "tasks", "--bundles", "examples/drift/bundles"),
        *("--state-dir", folder / "state", "--audit-days", f"{7 * DAY_S / 86_400:.6f}"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
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
    """Sends traffic, labels what the review queue asks for, and keeps what was seen."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.client = Client(url, timeout=120)
        self.url, self.rng = url, rng
        self.steps: list[Step] = []
        self.events: list[Event] = []
        self.sent: list[Sent] = []
        self.labels = 0
        self.alpha = self.client.calibration(TASK).certificate["trusted"]["alpha"]
        self.log_threshold = self._metrics()["guarantee_log_threshold", ""]
        self._answers: dict[str, str] = {}
        self._wanted: dict[str, float] = {}
        self._last: deque[bool] = deque(maxlen=100)
        self._verdicts: deque[bool] = deque(maxlen=48)
        self._start = time.monotonic()

    @property
    def now(self) -> float:
        """Days since the story began."""
        return (time.monotonic() - self._start) / DAY_S

    def send(self, rows: Sequence[dict[str, str]]) -> Step:
        """Decides, gives the labels that are due, and reads the metrics."""
        answers = [item.unwrap() for item in self.client.decide_batch([row["input"] for row in rows], task=TASK)]
        for row, answer in zip(rows, answers, strict=True):
            self._answers[answer.id] = row["label"]
            wrong = answer.decision != row["label"]
            self._verdicts.append(answer.trusted)
            self.sent.append(Sent(row, answer.score or 0.0, answer.trusted, wrong))
            if answer.trusted:
                self._last.append(wrong)
        self._label()
        page = self._metrics()
        states = [state for (name, state), value in page.items() if name == "certificate_state" and value == 1]
        step = Step(
            self.now,
            len(self.sent),
            self.labels,
            states[0],
            page.get(("trusted_risk", "estimate"), float("nan")),
            float(np.mean(self._last)) if states[0] == "valid" and len(self._last) >= 50 else float("nan"),
            float(np.mean(self._verdicts)),
            page["guarantee_log_evalue", ""],
        )
        self.steps.append(step)
        return step

    def happens(self, words: str) -> None:
        """Notes an event."""
        self.events.append(Event(self.now, len(self.sent), words))

    def forget(self) -> None:
        """Begins to count trusted decisions anew, under another certificate."""
        self._last.clear()

    def _label(self) -> None:
        """Looks at the queue as a reviewer does, and labels what has lain there for long enough."""
        now = self.now
        asked = [item.id for item in self.client.review(TASK, "audit", page_size=200)]
        due = [one for one in asked if now >= self._wanted.setdefault(one, now + self.rng.uniform(*DELAY_DAYS))]
        self.client.feedback_many([(one, self._answers[one]) for one in due])
        self.labels += len(due)

    def _metrics(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            match = re.match(rf'demur_(\w+)\{{(.*task="{TASK}".*)\}} (\S+)$', line)
            if match:
                which = re.search(r'(?:state|bound)="(\w+)"', match[2])
                found[match[1], which[1] if which else ""] = float(match[3])
        return found


def shift_that_hurts(sent: Sequence[Sent], alpha: float) -> Shift:
    """Of groups of requests that share an intent or a word: the one that makes the risk largest, yet not hopeless.

    Hopeless is traffic of which no stricter threshold trusts 30% at a quarter of alpha. All of it is read off answers
    to the same requests, so the shift does what is expected of it.
    """
    score, trusted, wrong = (np.array([getattr(one, name) for one in sent]) for name in ("score", "trusted", "wrong"))
    best, largest = None, alpha
    for words, rows in groups([one.row for one in sent]).items():
        for share in SHARES:
            weight = np.full(len(sent), (1 - share) / len(sent))
            weight[list(rows)] += share / len(rows)
            risk = float(weight[trusted & wrong].sum() / weight[trusted].sum())
            if largest < risk <= 6 * alpha and _renewable(score, wrong, weight, alpha):
                best, largest = Shift(words, rows, share), risk
    if best is None:
        raise SystemExit("no group of requests makes this model's trusted decisions wrong often enough")
    return best


def groups(rows: Sequence[dict[str, str]]) -> dict[str, tuple[int, ...]]:
    """Requests by intent and by word, as far as there are enough of them."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(f"about {row['label']}", []).append(index)
        for word in sorted(set(re.findall(r"[a-z]{3,}", row["input"].lower()))):
            found.setdefault(f"with the word “{word}”", []).append(index)
    return {words: tuple(members) for words, members in found.items() if len(members) >= SMALLEST}


def _renewable(score: NDArray[np.float64], wrong: NDArray[np.bool_], weight: NDArray[np.float64], alpha: float) -> bool:
    order = np.argsort(-score, kind="stable")
    covered = np.cumsum(weight[order])
    risk = np.cumsum((weight * wrong)[order]) / covered
    return bool(((covered >= 0.3) & (risk <= alpha / 4)).any())


def tell(story: Story) -> None:
    """Plays all four parts."""
    rows = [json.loads(line) for line in Path(f"examples/data/{TASK}.jsonl").read_text().splitlines()]
    story.rng.shuffle(rows)
    print("1. traffic as the certificate knows it", flush=True)
    for start in range(0, len(rows), BATCH):
        story.send(rows[start : start + BATCH])
    shift = shift_that_hurts(story.sent, story.alpha)
    print(f"2. the shift: {shift.share:.0%} of the requests are now {shift.words}", flush=True)
    story.happens("the traffic shifts")

    def shifted() -> list[dict[str, str]]:
        few = story.rng.choices(shift.rows, k=BATCH)
        return [rows[one] if story.rng.random() < shift.share else story.rng.choice(rows) for one in few]

    before = story.steps[-1].labels
    while story.steps[-1].state != "withdrawn":
        if len(story.sent) >= len(rows) + SHIFTED:
            raise SystemExit(f"the certificate is still {story.steps[-1].state}")
        story.send(shifted())
    labels = story.steps[-1].labels - before
    print(f"3. withdrawn, {labels} labelled audits after the shift", flush=True)
    story.happens(f"withdrawn after {labels} audits")
    attempts, wanted = 0, story.labels + FIRST_TRY
    while True:
        story.send(shifted())
        if story.labels < wanted:
            continue
        renewal = story.client.recertify(TASK, deadline=120)
        print(f"   recertify: {renewal.outcome}, attempt {renewal.attempt}, {renewal.model_extra}", flush=True)
        if renewal.outcome == "adopted":
            break
        attempts, wanted = attempts + (renewal.attempt is not None), wanted + TRY_EVERY
        if attempts >= TRIES:
            raise SystemExit("nothing was certified")
    print("4. trust returns", flush=True)
    story.happens(f"renewed at attempt {renewal.attempt}")
    story.forget()
    until = len(story.sent) + RENEWED
    while len(story.sent) < until:
        story.send(shifted())


def draw(story: Story) -> Plot:
    """Risk against alpha, the evidence against the certificate, and how much is trusted, over the days."""
    figure, (risk, evidence, trust) = new_figure(
        "A broken guarantee is withdrawn, and renewed",
        f"real requests, {RATE:.0%} audited; labels come {DELAY_DAYS[0]:g} to {DELAY_DAYS[1]:g} days later",
        height=7.2,
        rows=(3, 1.6, 1.6),
    )
    x = [step.day for step in story.steps]
    risk.plot(x, [step.truth for step in story.steps], color=ORANGE, label="last 100 trusted decisions")
    risk.plot(x, [step.risk for step in story.steps], color=BLUE, label="audits since the certificate")
    risk.axhline(story.alpha, color=RED, linestyle="--", linewidth=1.2, label="alpha")
    # Room above the lines for what happened.
    top = 1.5 * max(risk.get_ylim()[1], 2 * story.alpha)
    risk.set_ylim(-0.02 * top, top)
    percent_axis(risk.yaxis)
    risk.set_ylabel("error among trusted")
    evidence.plot(x, [step.log_evalue for step in story.steps], color=BLUE)
    evidence.axhline(story.log_threshold, color=RED, linestyle="--", linewidth=1.2)
    evidence.set_ylim(top=1.6 * max(story.log_threshold, evidence.get_ylim()[1] / 1.2))
    evidence.annotate(
        "withdrawn from here on",
        (0, story.log_threshold),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=8,
        color=RED,
    )
    evidence.set_ylabel("log W, unlabelled\ncounted as right")
    trust.step(x, [step.trusted for step in story.steps], where="pre", color=INK, linewidth=1)
    trust.set_ylim(0, 1.05)
    percent_axis(trust.yaxis)
    trust.set_ylabel("trusted")
    trust.set_xlabel(f"days, of {DAY_S:g} s each")
    trust.set_xlim(0, x[-1])
    for place, event in enumerate(story.events):
        for axes in (risk, evidence, trust):
            axes.axvline(event.day, color=QUIET, linewidth=0.8, linestyle=":")
        # Each at a height of its own, so that they cannot meet, and inside the axes.
        left = event.day > 0.8 * x[-1]
        risk.annotate(
            event.words,
            (event.day, top),
            xytext=(-4 if left else 4, -6 - 13 * place),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            fontsize=8,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    figure.legend(
        *risk.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.11, 0.935),
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    return Plot(figure, "; ".join(f"day {event.day:.0f}: {event.words}" for event in story.events))


def table(story: Story) -> str:
    """The parts of the story, a row each."""
    names = ("as certified", "shifted, still trusted", "withdrawn", "renewed")
    ends = [*((event.day, event.requests) for event in story.events), (story.steps[-1].day, len(story.sent))]
    lines = [
        "| part | days | requests | labels | trusted | wrong among trusted | state at its end |",
        "|---|" + "---|" * 6,
    ]
    day, start, labels = 0.0, 0, 0
    for name, (until, end) in zip(names, ends, strict=True):
        step = next(step for step in story.steps if step.requests == end)
        part = story.sent[start:end]
        trusted = [one.wrong for one in part if one.trusted]
        share = f"{np.mean(trusted):.3f}" if trusted else "-"
        lines.append(
            f"| {name} | {until - day:.0f} | {len(part)} | {step.labels - labels} | {len(trusted) / len(part):.3f} "
            f"| {share} | {step.state} |"
        )
        day, start, labels = until, end, step.labels
    return "\n".join(lines) + "\n"


def main() -> None:
    """Tell the story and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for figure and table")
    parser.add_argument("--port", type=int, default=8017)
    wanted = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, server(wanted.port, Path(folder)) as url:
        story = Story(url, random.Random(7))  # noqa: S311
        tell(story)
    wanted.out.mkdir(parents=True, exist_ok=True)
    plot, text = draw(story), table(story)
    (wanted.out / "drift.png").write_bytes(plot.png())
    (wanted.out / "drift.svg").write_text(plot.svg())
    (wanted.out / "drift.md").write_text(text)
    print(f"\n{text}\n{wanted.out}/drift.png, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
