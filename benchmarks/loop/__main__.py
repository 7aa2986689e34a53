"""Runs the parts that are named, or all: `python -m benchmarks.loop [feedback] [scale] [cost]`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from benchmarks.loop import cost, feedback, scale
from benchmarks.serving.report import Row, json_line, table

PARTS: dict[str, Callable[[], Sequence[Row]]] = {"feedback": feedback.run, "scale": scale.run, "cost": cost.run}


def main() -> int:
    """Prints a table and a line of JSON. Returns 1 when a requirement is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
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
