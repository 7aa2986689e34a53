"""What calibration-aware training costs beside TRL.

    .venv/bin/python -m benchmarks.training [reasoned] [direct]

Prints a table and a line of JSON, and exits with 1 when a requirement is missed. Some six minutes on two cores; run it
on a machine that does nothing else.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

from benchmarks.training.direct import direct_against_trl
from benchmarks.training.reasoned import peak_memory, print_memory, trainers
from benchmarks.training.turns import in_turn, upper_bound_of_median

PAIRS, DIRECT_STEPS, SEEDS = 32, 40, 2


def reasoned(out: Path) -> list[tuple[str, float, str, bool]]:
    """Rows: what, figure, required, met."""
    pairs = in_turn(*trainers(out, PAIRS + 2))
    bound, cpu_bound = (upper_bound_of_median(ratios) for ratios in (pairs.ratios, pairs.cpu_ratios))
    print(f"reasoned step: {median(pairs.ours):.3f} s, TRL {median(pairs.theirs):.3f} s", file=sys.stderr)
    print(
        f"ratios: {median(pairs.ratios):.3f}, at most {bound:.3f}; of CPU time {median(pairs.cpu_ratios):.3f}, "
        f"at most {cpu_bound:.3f}",
        file=sys.stderr,
    )
    (mine, added), (other, their_added) = peak_memory("ours"), peak_memory("TRL")
    print(f"peak: {mine:.0f} MB, TRL {other:.0f} MB; by training {added:.0f}, {their_added:.0f}", file=sys.stderr)
    return [
        (f"reasoned step against TRL's GRPO, median ratio of {PAIRS} pairs", median(pairs.ratios), "", True),
        ("its upper 95% bound", bound, "<= 1.05", bound <= 1.05),
        ("the same of CPU time", median(pairs.cpu_ratios), "", True),
        ("its upper 95% bound of CPU time", cpu_bound, "", True),
        ("peak memory of the process against TRL's", mine / other, "<= 1.05", mine / other <= 1.05),
        ("what training added to it, against TRL's", added / max(their_added, 1.0), "", True),
    ]


def direct(out: Path) -> list[tuple[str, float, str, bool]]:
    """Rows: what, figure, required, met."""
    found = [direct_against_trl(out / str(seed), DIRECT_STEPS, seed) for seed in range(SEEDS)]
    faster = 1 / median(ratio for one in found for ratio in one.pairs.ratios)
    cpu = 1 / median(ratio for one in found for ratio in one.pairs.cpu_ratios)
    lost = mean(one.their_accuracy - one.accuracy for one in found)
    for one in found:
        print(
            f"direct step: {median(one.pairs.ours):.3f} s, TRL {median(one.pairs.theirs):.3f} s; "
            f"accuracy {one.accuracy:.3f}, TRL {one.their_accuracy:.3f}, before {one.start:.3f}, best {one.best:.3f}",
            file=sys.stderr,
        )
    return [
        ("direct step at G = 8: times faster a prompt than TRL's GRPO", faster, ">= 6", faster >= 6),
        ("the same of CPU time, of a direct step", cpu, "", True),
        ("accuracy lost against it", lost, "<= 0.01", lost <= 0.01),
    ]


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="reasoned, direct [both]")
    parser.add_argument("--memory-of", choices=("ours", "TRL"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    known = {"reasoned": reasoned, "direct": direct}
    if unknown := set(wanted.parts) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        if wanted.memory_of:
            print_memory(wanted.memory_of, Path(folder))
            return 0
        rows = [row for part in wanted.parts or known for row in known[part](Path(folder))]
    print("| what | figure | required |\n|---|---|---|")
    for what, figure, required, met in rows:
        print(f"| {what} | {figure:.3f} | {required}{'' if met else ' **missed**'} |")
    print(json.dumps({what: figure for what, figure, *_ in rows}))
    return 0 if all(met for *_, met in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
