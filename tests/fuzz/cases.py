"""One program, run bare and observed in two forks, and what differs."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import random
import re
import resource
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.waiting import LOOK, Watched

CPU_SECONDS = 120  # no program needs a tenth of it
AT_REST = 20  # looks in a row that find a child doing nothing at all: no program waits for more than another
FORMATS = ("text", "json", "html", "sarif", "markdown", "github")
# What is no word of the program's.
_NOT_THEIRS = re.compile(
    r"(?m)^gradscope: [^\n]*\n"  # our own lines
    r"|^ *File \"[^\"]*tests/fuzz/run.py\", line [^\n]*\n(?: {4}[^\n]*\n)*"  # the top of this runner on a printed stack
    r"|^  File \"[^\"]*\", line \d+ in [^\n]*\n"  # a stack as C prints it, to its foot, wherever threads are just then
    r"|(?<=^[WEI])\d{4} [\d:.]+ \d+"  # the time and the process in lines of torch's logging
    r"|(?<=\[Previous line repeated )\d+"  # the bare program stands two levels higher on this runner than on Python
)


class Child(NamedTuple):
    """A fork that is to run a program."""

    folder: Path
    program: str
    source: str
    observed: bool
    naturally: bool  # to the interpreter's own end
    thoroughly: bool  # with a look at all of torch for what is left behind
    before: Any

    @property
    def name(self) -> str:
        """What its files are called."""
        return "observed" if self.observed else "bare"

    def enter(self) -> None:
        """The scene as a shell would set it: an empty standard input, files for what is written, and the folder."""
        os.setsid()
        os.chdir(self.folder)
        streams = [os.open(os.devnull, os.O_RDONLY)]
        streams += [os.open(f"{self.name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for kind in ("out", "err")]
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os.closerange(3, 64)
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(  # type: ignore[misc]  # noqa: SIM115
            2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
        )
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.register(signal.SIGUSR1, file=open(f"{self.name}.stacks", "w"))  # noqa: SIM115 - for ever
        faulthandler.disable()  # dynamo turns it on
        random.seed(0)  # Python seeds it anew in every fork
        sys.path[0] = str(self.folder)
        sys.argv = [self.program.rpartition("/")[2]]
        if self.observed:
            options = ("--format", "json", "-o", "report.json", "--save", "run.json", "--fail-on", "never")
            sys.argv = ["gradscope", "explain", *options, *sys.argv]

    def leave(self, code: object) -> None:
        """Look back, and end as Python does.

        Taking torch down takes as long as most programs, so that few do.
        """
        if not self.observed and not isinstance(code, int) and code is not None:
            print(code, file=sys.stderr)
            code = 1
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        (self.folder / f"{self.name}.left").write_text(json.dumps(self.before.left_behind(self.thoroughly)))
        if self.naturally:
            sys.exit(code)  # type: ignore[arg-type]
        threading._shutdown()  # type: ignore[attr-defined]
        import atexit

        atexit._run_exitfuncs()
        status = code if isinstance(code, int) else 0
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status & 0xFF)


class Begin(BaseException):
    """Raised in a fork, to be caught at the top: the stack is as empty there as a program expects it."""

    def __init__(self, child: Child) -> None:
        self.child = child


class Ended(NamedTuple):
    """How a fork went."""

    status: int | str
    out: str
    err: str
    left: dict[str, str]


def prepared() -> Any:
    """Import all that programs use, start no thread, and note how everything looks now."""
    # One thread, and no lines of the profiler's that tell the time.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "99"}
    import torch
    import torch._dynamo.backends.debugging
    import torch._dynamo.output_graph
    import torch._functorch.aot_autograd
    import torch.func
    import torch.nn.utils.parametrizations
    import torch.profiler
    import torch.utils.checkpoint

    import gradscope
    from tests.fuzz.surroundings import Before

    for part in ("probes", "reports", "shells.commands"):
        for module in pkgutil.iter_modules([os.path.join(gradscope.__path__[0], *part.split("."))]):
            if module.name not in ("tensorboard", "torchviz", "plot", "layout"):
                importlib.import_module(f"gradscope.{part}.{module.name}")
    importlib.import_module("gradscope.shells.live")
    importlib.import_module("gradscope.shells.ranks")
    report_schema()
    sarif_schema()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    return Before()


class Case:
    """A folder in which programs are run, one after the other."""

    def __init__(self, folder: Path, before: Any) -> None:
        self.folder = folder
        self.program = folder / "program.py"
        self.before = before

    def verdict(self, source: str, seed: int) -> list[str]:
        """All that differs, or is not as it must be."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.program.write_text(source, encoding="utf-8")
        bare = self._run(source, seed, False)
        seen = self._run(source, seed, True)
        wrong = list(differences(bare, seen))
        if wrong:
            again = list(differences(bare, self._run(source, seed, False)))  # its files take the place of the first
            if again:
                return [f"the program itself is not the same twice: {again[0]}"]
        # Who leaves without Python's knowing leaves no report.
        if seen.left:
            wrong += self._read_again(seed)
        return wrong

    def _run(self, source: str, seed: int, observed: bool) -> Ended:
        # Both take as long as most programs: so few do.
        naturally = seed % 8 == 0 or "exits" in source.partition("\n")[0]
        thoroughly = seed % 4 == 1
        child = Child(self.folder, str(self.program), source, observed, naturally, thoroughly, self.before)
        pid = os.fork()
        if pid == 0:
            raise Begin(child)
        status = waited(pid)
        files = {kind: self.folder / f"{child.name}.{kind}" for kind in ("out", "err", "left")}
        out, err = (_NOT_THEIRS.sub("", files[kind].read_text("utf-8", "replace")) for kind in ("out", "err"))
        left = json.loads(files["left"].read_text()) if files["left"].exists() and files["left"].stat().st_size else {}
        files["left"].unlink(missing_ok=True)
        return Ended(status, out, err, left)

    def _read_again(self, seed: int) -> list[str]:
        """What is wrong with the reports, made in a fork of their own."""
        said = self.folder / "reports.said"
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.chdir(self.folder)
            try:
                wrong = list(report_faults(self.folder, seed))
            except BaseException as error:
                wrong = [f"report fails: {type(error).__name__}: {error}"]
            said.write_text(json.dumps(wrong))
            os._exit(0)
        status = waited(pid)
        return json.loads(said.read_text()) if status == 0 else [f"report fails: {status}"]


def waited(pid: int) -> int | str:
    """Wait for a fork; gives its exit status, negative for a signal, or says that it does not end.

    The kernel ends a child that computes for too long; one that hangs is seen to do nothing.
    """
    watched = Watched(pid, AT_REST)
    descriptor = os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], LOOK)[0]:
            if watched.hangs():
                os.kill(pid, signal.SIGUSR1)  # it writes its stacks
                select.select([descriptor], [], [], LOOK)
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return "does not end"
    finally:
        os.close(descriptor)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what it has forked and left
    return "computes for ever" if status == -signal.SIGXCPU else status


def differences(bare: Ended, seen: Ended) -> Iterator[str]:
    """What is not the same."""
    if bare.status != seen.status:
        yield (
            f"exit {seen.status}: instead of {bare.status}"
            if isinstance(seen.status, int)
            else f"{seen.status}: {bare.status} bare"
        )
    if bare.out != seen.out:
        yield f"standard output: {first_difference(bare.out, seen.out)}"
    if bare.err != seen.err:
        yield f"standard error: {first_difference(bare.err, seen.err)}"
    for name in sorted({*bare.left, *seen.left}) if bare.left and seen.left else ():
        if bare.left.get(name) != seen.left.get(name):
            yield f"left behind {name}: {bare.left.get(name)} bare, {seen.left.get(name)} observed"


def first_difference(one: str, other: str) -> str:
    """The first line that is another, in both."""
    lines, others = one.splitlines(), other.splitlines()
    for place in range(max(len(lines), len(others))):
        first, second = (some[place] if place < len(some) else "(nothing)" for some in (lines, others))
        if first != second:
            return f"line {place + 1}: {first[:160]!r} bare, {second[:160]!r} observed"
    return "line ends"


def report_faults(folder: Path, seed: int) -> Iterator[str]:
    """What is wrong with the report and with the kept run, which must give every report again."""
    from gradscope.graph.storage import load

    written = folder / "report.json"
    if not written.exists() or not written.stat().st_size:
        yield "no report"
        return
    report = json.loads(written.read_text())
    for error in report_schema().iter_errors(report):
        yield f"schema of the report: {error.json_path} {error.message[:100]}"
    run = load(folder / "run.json")
    for failure in run.failures:
        yield f"a probe failed: {failure}"
    for format_ in FORMATS:
        status, out, err = gradscope("show", "run.json", "--format", format_, "--fail-on", "never", "--all")
        if status or err:
            yield f"show {format_}: {status} {err[-200:]}"
        if format_ == "json" and out != written.read_text():
            yield f"show json: another report: {first_difference(written.read_text(), out)}"
        odd = {one for one in out if one != "\n" and not one.isprintable()}
        if odd and format_ in ("text", "markdown", "github"):
            yield f"show {format_}: characters that no terminal should get: {sorted(odd)}"
        if format_ == "sarif" and seed % 10 == 0:
            for error in sarif_schema().iter_errors(json.loads(out)):
                yield f"schema of SARIF: {error.json_path} {error.message[:100]}"
    picture = "graph.svg" if seed % 20 == 0 else "graph.dot"
    status, _, err = gradscope("show", "run.json", "--graph", picture, "--format", "github", "--fail-on", "never")
    if status or err != f"gradscope: drew {picture}\n" or not Path(picture).stat().st_size:
        yield f"graph: {status} {err[-200:]}"
    status, out, err = gradscope("diff", "run.json", "report.json")
    if status or err:
        yield f"diff: {status} {err[-200:]}"


def gradscope(*arguments: str) -> tuple[object, str, str]:
    """The command line, in this process."""
    from gradscope.shells.cli import main

    sys.argv = ["gradscope", *arguments]
    out, err = io.StringIO(), io.StringIO()
    status: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    return status, out.getvalue(), err.getvalue()


@functools.cache
def report_schema() -> Any:
    """The schema that the package ships."""
    import jsonschema

    import gradscope.reports

    path = Path(gradscope.reports.__file__ or "").with_name("report.schema.json")
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


@functools.cache
def sarif_schema() -> Any:
    """The schema of SARIF."""
    import jsonschema

    path = Path(__file__).parents[1] / "schemas" / "sarif-2.1.0-rtm.4.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text()))
