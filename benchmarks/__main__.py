"""`python -m benchmarks [--quick]`: measure every budget and print the table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks import decorating, drawing, memory, recording, starting, walking, whole
from benchmarks.ratios import Row

_PARTS = (recording, decorating, walking, memory, starting, drawing, whole)


def measured(quick: bool) -> Iterator[Row]:
    """The rows of all parts, each as soon as it is measured."""
    for part in _PARTS:
        yield from part.rows(quick)


def line(what: str, against: str, ratio: str, budget: str, verdict: str = "") -> str:
    """One line of the table."""
    return f"{what:<54}  {against:<27}  {ratio:>6}  {budget:>6}  {verdict}".rstrip()


def main() -> None:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller graphs")
    options = parser.parse_args()
    print(line("what", "against", "ratio", "budget"))
    for row in measured(options.quick):
        over = row.budget is not None and row.ratio > row.budget
        budget = "-" if row.budget is None else f"{row.budget:.2f}"
        print(line(row.what, row.against, f"{row.ratio:.2f}", budget, "over" if over else ""), flush=True)


if __name__ == "__main__":
    main()
