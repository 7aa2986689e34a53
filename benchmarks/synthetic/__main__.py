"""What each objective converges to, on a task whose posterior is known: decided directly, and after a thought.

    .venv/bin/python -m benchmarks.synthetic [--half direct|reasoned] [--quick] [--seeds 5] [--arms NAME ...]
                                             [--out FOLDER] [--report]

Trains what FOLDER does not hold yet, so that it can be stopped and resumed; then prints Markdown. With --report nothing
is trained, and the tables and the figure are put into docs/objectives.md. The direct half takes about ten minutes on
one core, the reasoned one about forty; --quick takes one and three.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.synthetic.arms import ARMS, Budget, Result, bayes_accuracy, train_arm
from benchmarks.synthetic.extraction import extraction_table
from benchmarks.synthetic.figure import figure
from benchmarks.synthetic.reasoned import REASONED_ARMS, ReasonedBudget, ReasonedResult, train_reasoned
from benchmarks.synthetic.table import DIRECT, REASONED, Names, claims, table
from benchmarks.synthetic.task import TASKS

FOLDER = Path(__file__).parent
FIGURE = FOLDER.parents[1] / "docs/objectives.svg"


@dataclass(frozen=True)
class Half:
    """One mode: its arms, how one is trained, and with how much."""

    file: str
    arms: Sequence[str]
    names: Names
    train: Callable[[str, str, int, Any], Result]
    budget: Any
    quick: Any


HALVES = {
    "direct": Half("results.jsonl", tuple(ARMS), DIRECT, train_arm, Budget(), Budget(steps=150, held_out=4000)),
    "reasoned": Half(
        "reasoned.jsonl",
        tuple(REASONED_ARMS),
        REASONED,
        train_reasoned,
        ReasonedBudget(),
        ReasonedBudget(start_steps=100, steps=40, held_out=1000, diagnosed=50),
    ),
}


def load(path: Path) -> list[Any]:
    """Results so far; a last line that was cut off is none."""
    rows = [json.loads(line) for line in _whole_lines(path)]
    return [ReasonedResult.of(row) if "tally" in row else Result(**row) for row in rows]


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def grid(half: Half, arms: Sequence[str], seeds: int, budget: Any, path: Path | None) -> list[Any]:
    """Train every arm on every task and seed that `path` lacks; seeds outermost, so that a part is a smaller grid."""
    results = load(path) if path else []
    done = {(r.task, r.arm, r.seed) for r in results if r.steps == budget.steps}
    cells = [(task, arm, seed) for seed in range(seeds) for task in TASKS for arm in arms]
    todo = [cell for cell in cells if cell not in done]
    if path and todo:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_whole_lines(path)))
    for cell in tqdm(todo, disable=not sys.stderr.isatty()):
        results.append(half.train(*cell, budget))
        if path:
            with path.open("a") as file:
                file.write(json.dumps(asdict(results[-1])) + "\n")
    return [r for r in results if (r.task, r.arm, r.seed) in set(cells)]


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, help="one mode only")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps, nothing is kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *REASONED_ARMS], help="these only")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--report", action="store_true", help="train nothing; put tables and figure into the document")
    wanted = parser.parse_args()
    for name in [wanted.half] if wanted.half else HALVES:
        half = HALVES[name]
        arms = [arm for arm in half.arms if not wanted.arms or arm in wanted.arms]
        path = wanted.out / half.file
        if wanted.report:
            results = load(path)
        elif wanted.quick:
            results = grid(half, arms, 1, half.quick, None)
        else:
            results = grid(half, arms, wanted.seeds, half.budget, path)
        if wanted.report:
            write_report(name, results)
        print(report(half, results))


def write_report(name: str, results: Sequence[Any]) -> None:
    """Puts the tables of one half between its marks in the document, and draws the figure of the direct half."""
    document = FIGURE.with_suffix(".md")
    text = document.read_text()
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} has no place marked {begin.strip()!r}")
    document.write_text(before + begin + report(HALVES[name], results) + end + after)
    if name == "direct":
        FIGURE.write_text(figure(results).svg())


def report(half: Half, results: Sequence[Any]) -> str:
    """The tables of one half."""
    parts = [table(name, bayes_accuracy(task), results) for name, task in TASKS.items()]
    parts.append(claims(results, half.names))
    if half.names is REASONED:
        parts.append("\n" + extraction_table(results))
    return "\n".join(parts)


if __name__ == "__main__":
    main()
