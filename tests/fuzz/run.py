"""Runs random programs bare and observed, and says what differs.

    python tests/fuzz/run.py 150 [--seed 0] [--jobs 2] [--without INGREDIENT,INGREDIENT] [--keep FOLDER] [--smaller]

One process imports torch and gradscope, and every program runs in a fork of it: bare, as `python program.py` runs it,
and under `gradscope explain`. A fork begins its program at the top of this file, so that nothing of ours lies below it
on the stack.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import select
import shutil
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from tests.fuzz.cases import Begin, Case, Child, prepared
from tests.fuzz.making import made
from tests.fuzz.smaller import smaller


def supervise(arguments: Sequence[str]) -> int:
    """Run all programs, some at once; gives the number of those that differ.

    In a fork that is to run a program, Begin comes out of here.
    """
    options = parsed(arguments)
    before = prepared()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="gradscope-fuzz-")).resolve()
    seeds = range(options.seed, options.seed + options.count)
    lanes: dict[int, int] = {}
    for lane in range(min(options.jobs, len(seeds))):
        read, write = os.pipe()
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            os.close(read)
            run_lane(seeds[lane :: options.jobs], folder, options, before, write)
            os._exit(0)
        os.close(write)
        lanes[read] = pid
    failed = told(list(lanes), len(seeds))
    for pid in lanes.values():
        os.waitpid(pid, 0)
    if not failed and not options.keep:
        shutil.rmtree(folder)
    return failed


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", nargs="?", type=int, default=1, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--without", type=lambda text: text.split(","), default=(), help="ingredients to leave out")
    parser.add_argument("--keep", help="a folder for programs and reports; those that differ are always kept")
    parser.add_argument("--smaller", action="store_true", help="take away from a program that differs while it does")
    parser.add_argument("--program", help="run this file instead of random programs")
    return parser.parse_args(arguments)


def run_lane(seeds: Sequence[int], folder: Path, options: argparse.Namespace, before: object, write: int) -> None:
    """Run these programs one after the other."""
    for seed in seeds:
        text = Path(options.program).read_text() if options.program else made(seed, options.without)
        case = Case(folder / str(seed), before)
        wrong = case.verdict(text, seed)
        if wrong and options.smaller:
            case = Case(folder / f"{seed}-smaller", before)
            text = smaller(text, functools.partial(fails_too, case, seed, wrong[0].partition(":")[0]))
            wrong = case.verdict(text, seed)
        os.write(write, (json.dumps([seed, str(case.program), wrong, text.partition("\n")[0]]) + "\n").encode())
        if not wrong and not options.keep:
            shutil.rmtree(case.folder)


def kinds_of(wrong: Sequence[str]) -> set[str]:
    """What differs, without how."""
    return {one.partition(":")[0] for one in wrong}


def fails_too(case: Case, seed: int, kind: str, text: str) -> bool:
    """Whether the same kind of thing differs in another text as well."""
    return kind in kinds_of(case.verdict(text, seed))


def told(lanes: list[int], count: int) -> int:
    """Print what differs as it comes, and the figures at the end; gives how many differ."""
    kinds: Counter[str] = Counter()
    failed = done = 0
    pending = dict.fromkeys(lanes, b"")
    while pending:
        for lane in select.select(list(pending), [], [])[0]:
            data = os.read(lane, 1 << 16)
            if not data:
                del pending[lane]
                continue
            *lines, pending[lane] = (pending[lane] + data).split(b"\n")
            for line in lines:
                seed, path, wrong, first = json.loads(line)
                done += 1
                if wrong:
                    failed += 1
                    kinds.update(sorted(kinds_of(wrong)))
                    print(f"seed {seed}: {'; '.join(wrong)}\n    {path}  {first}", flush=True)
                if done % 500 == 0:
                    print(f"... {done} of {count} done, {failed} differ", flush=True)
    print(f"{done - failed} of {count} the same")
    for kind, number in kinds.most_common():
        print(f"{number:6d} {kind}")
    return failed + count - done


if __name__ == "__main__":
    child: Child
    try:
        sys.exit(min(supervise(sys.argv[1:]), 1))
    except Begin as begin:
        child = begin.child
    child.enter()
    if child.observed:
        from gradscope.shells.cli import main

        try:
            main()
        except SystemExit as ended:
            child.leave(ended.code)
    else:
        module = types.ModuleType("__main__")
        module.__dict__.update(__file__=child.program, __builtins__=__builtins__, __cached__=None, __annotations__={})
        ours, sys.modules["__main__"] = sys.modules["__main__"], module
        try:
            exec(compile(child.source, child.program, "exec", dont_inherit=True), module.__dict__)
        except SystemExit as ended:
            child.leave(ended.code)
        except BaseException as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            sys.excepthook(type(error), error, error.__traceback__)
            child.leave(1)
        else:
            child.leave(0)
