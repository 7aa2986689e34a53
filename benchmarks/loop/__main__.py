"""What the loop costs, and how it does with much in the store.

    .venv/bin/python -m benchmarks.loop [feedback] [scale] [cost]

feedback: labels a second over HTTP, durable on SQLite; seconds. scale: a restart and a scrape with 200 tasks and
1,000,000 stored decisions; a minute. cost: decisions a second of the demo model with the loop against without, on real
vLLM; it asks 15,872 of them: 8 minutes where one takes 27 ms, a quarter of an hour at 57 ms, much longer on a machine
that does other work besides. Prints a table and a line of JSON, and exits with 1 when a requirement is missed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from benchmarks.loop import cost, feedback, scale
from benchmarks.serving.report import Row, json_line, table

PARTS: dict[str, Callable[[], Sequence[Row]]] = {"feedback": feedback.run, "scale": scale.run, "cost": cost.run}


def main() -> int:
    """Prints a table and a line of JSON. Returns 1 when a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PARTS)}; all by default")
    names = parser.parse_args().names or list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += PARTS[name]()
    print(table(rows))
    print(json_line(rows))
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
