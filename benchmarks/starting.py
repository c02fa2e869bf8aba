"""The start of the command line, which must not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.ratios import Row, seconds

_TORCH_IMPORTED = """
import sys
from gradscope.shells.cli import main
try:
    main(["--help"])
finally:
    sys.exit("torch" in sys.modules)
"""


def rows(quick: bool) -> Iterator[Row]:
    """`--help` against an empty Python; importing torch shows as an infinite ratio."""
    ratio = median([_run("-m", "gradscope", "--help") / _run("-c", "pass") for _ in range(5 if quick else 25)])
    try:
        _run("-c", _TORCH_IMPORTED)
    except subprocess.CalledProcessError:
        ratio = float("inf")
    yield Row("gradscope --help, torch not imported", "python -c pass", ratio, 5.0)


def _run(*arguments: str) -> float:
    command = [sys.executable, *arguments]
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True))
