"""What each objective converges to, on a task whose posterior is known: direct half.

    .venv/bin/python -m benchmarks.synthetic [--quick] [--seeds 5] [--out FILE] [--arms NAME ...] [--report]

Trains what FILE does not hold yet, so that it can be stopped and resumed; then prints Markdown and, with --report,
nothing is trained and docs/objectives.svg is drawn. About ten minutes on one core; --quick takes one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.synthetic.arms import ARMS, Budget, Result, bayes_accuracy, train_arm
from benchmarks.synthetic.figure import figure
from benchmarks.synthetic.table import claims, table
from benchmarks.synthetic.task import TASKS

RESULTS = Path(__file__).parent / "results.jsonl"
FIGURE = Path(__file__).parents[2] / "docs/objectives.svg"
QUICK = Budget(steps=150, held_out=4000)


def load(path: Path) -> list[Result]:
    """Results so far; a last line that was cut off is none."""
    return [Result(**json.loads(line)) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def grid(arms: Sequence[str], seeds: int, budget: Budget, path: Path | None) -> list[Result]:
    """Train every arm on every task and seed that `path` lacks; seeds outermost, so that a part is a smaller grid."""
    results = load(path) if path else []
    done = {(r.task, r.arm, r.seed) for r in results if r.steps == budget.steps}
    cells = [(task, arm, seed) for seed in range(seeds) for task in TASKS for arm in arms]
    todo = [cell for cell in cells if cell not in done]
    if path and todo:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_whole_lines(path)))
    for cell in tqdm(todo, disable=not sys.stderr.isatty()):
        results.append(train_arm(*cell, budget))
        if path:
            with path.open("a") as file:
                file.write(json.dumps(asdict(results[-1])) + "\n")
    return [r for r in results if (r.task, r.arm, r.seed) in set(cells)]


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps, nothing is kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="train nothing; draw the figure too")
    wanted = parser.parse_args()
    if wanted.report:
        results = load(wanted.out)
        FIGURE.write_text(figure(results).svg())
    elif wanted.quick:
        results = grid(wanted.arms, 1, QUICK, None)
    else:
        results = grid(wanted.arms, wanted.seeds, Budget(), wanted.out)
    for name, task in TASKS.items():
        print(table(name, bayes_accuracy(task), results))
    print(claims(results))


if __name__ == "__main__":
    main()
