"""Running a script or a module as `python SCRIPT ARGS` would, under observation."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import linecache
import os
import pkgutil
import runpy
import sys
import threading
import tokenize
import zipfile
import zipimport
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import thread as workers
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch

from gradscope import __version__
from gradscope.errors import GradscopeError, Interrupted
from gradscope.graph.facts import Crash, Ending, Run, Span, Wrapper
from gradscope.probes.backward.raising import call_that_raised
from gradscope.probes.backward.symptoms import cause_in, symptom_of
from gradscope.probes.forward.callsites import USER, legible
from gradscope.probes.observation import Observation
from gradscope.probes.program.recursion import run_at_foot
from gradscope.probes.program.tracebacks import clean
from gradscope.probes.tape import first_line
from gradscope.probes.training.optimizers import StepsReached

_GZIP = b"\x1f\x8b"  # how a compressed file begins, as kept runs are


class ScriptError(GradscopeError):
    """The script cannot be run at all."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is to be run: code for `__main__`, and how Python would have set the scene for it."""

    code: CodeType
    file: str
    argv: tuple[str, ...]
    path: str
    name: str
    own: tuple[str, ...] = ()
    spec: importlib.machinery.ModuleSpec | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program went: its facts, its own exit status, and its exception without a frame of ours.

    `leave` sets the scene again for what of the program runs as the interpreter ends, where the process was its own.
    `lost` says why there are no facts, where ours failed to read them out.
    """

    run: Run
    status: int
    error: BaseException | None = None
    leave: Callable[[], None] = field(default=lambda: None, repr=False)
    lost: str | None = None


def program_of_script(script: str, args: Sequence[str]) -> Program:
    """The program in a file. Raises ScriptError where there is none that can be compiled."""
    path = Path(script)
    archive = pkgutil.get_importer(os.path.abspath(script)) if path.exists() else None
    if archive is not None:
        return _program_in(archive, script, args)
    try:
        # As the import system reads it: what serves modules from memory serves the script as well.
        source = importlib.machinery.SourceFileLoader("__main__", script).get_data(script)
    except FileNotFoundError:
        raise ScriptError(f"no such file: {script}") from None
    except OSError as error:
        raise ScriptError(f"cannot read {script}: {error.strerror or error}") from None
    _refuse_others(script, source)
    file = os.path.abspath(script)
    code = _compiled(source, file, script)
    if not path.is_file():
        _remember(file, source)  # what came through a pipe cannot be read again
    return Program(code, file, (script, *args), os.path.dirname(os.path.realpath(script)), script)


def _refuse_others(script: str, source: bytes) -> None:
    """Raise ScriptError for a file that is known and no script, with what to do with it."""
    name = script.lower()
    if name.endswith(".ipynb"):
        raise ScriptError(
            f"{script} is a notebook: begin a cell with %%gradscope after %load_ext gradscope, "
            f"or make a script of it by `jupyter nbconvert --to script {script}`"
        )
    if name.endswith((".pyc", ".pyo")) or source.startswith(importlib.util.MAGIC_NUMBER):
        raise ScriptError(f"{script} is compiled: the report shows lines of the source, name that")
    if source.startswith(_GZIP) or name.endswith(".json"):
        raise ScriptError(f"{script} is no script: a kept run is shown by `gradscope show {script}`")
    if b"\0" in source:
        raise ScriptError(f"{script} is no script: it has a syntax error, for it holds null bytes as no text does")


def _program_in(archive: Any, script: str, args: Sequence[str]) -> Program:
    """The `__main__.py` of a directory or of a zip archive."""
    try:
        spec = archive.find_spec("__main__")
        code = spec.loader.get_code("__main__") if spec is not None else None
    except SyntaxError as error:
        raise ScriptError(_syntax(error, f"{script}/__main__.py")) from None
    except (ImportError, OSError, ValueError) as error:
        raise ScriptError(f"cannot run {script}: {error}") from None
    if spec is None or code is None:
        what = "a directory without __main__.py" if os.path.isdir(script) else "an archive without __main__.py"
        raise ScriptError(f"{script} is {what}: name the script in it, or a package with -m")
    if isinstance(archive, zipimport.zipimporter):
        _remember_archive(archive)
    return Program(code, str(spec.origin), (script, *args), os.path.abspath(script), script, spec=spec)


def _remember_archive(archive: zipimport.zipimporter) -> None:
    """Let the lines of the modules in an archive be found, which are no files."""
    with zipfile.ZipFile(archive.archive) as members:
        for name in members.namelist():
            if name.endswith(".py"):
                _remember(os.path.join(archive.archive, *name.split("/")), members.read(name))


def _remember(file: str, source: bytes) -> None:
    """Keep the lines of a source that can be read once only."""
    lines = io.TextIOWrapper(io.BytesIO(source), _encoding(source), "replace").readlines()
    linecache.cache[file] = (len(source), None, lines, file)


def _encoding(source: bytes) -> str:
    """The encoding that a source declares, UTF-8 by default."""
    try:
        return tokenize.detect_encoding(io.BytesIO(source.replace(b"\r", b"\n")).readline)[0]
    except SyntaxError:
        return "utf-8"


def program_of_module(module: str, args: Sequence[str]) -> Program:
    """The program that `python -m module` would run. Raises ScriptError where there is none."""
    sys.path.insert(0, os.getcwd())
    try:
        name, spec, code = runpy._get_module_details(module, ScriptError)  # type: ignore[attr-defined]
    except SyntaxError as error:
        raise ScriptError(_syntax(error, module)) from None
    except ScriptError as error:
        raise ScriptError(f"no module to run: {error}") from None
    finally:
        with suppress(ValueError):
            sys.path.remove(os.getcwd())
    file = str(spec.origin)
    package = os.path.dirname(file) + os.sep if "." in name else file
    return Program(code, file, (file, *args), os.getcwd(), module, (package,), spec)


def _compiled(source: bytes, file: str, script: str) -> CodeType:
    try:
        code = compile(source, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ScriptError(_syntax(error, script)) from None
    except ValueError as error:  # so early releases of Python 3.11 call null bytes
        raise ScriptError(f"{script} has a syntax error: {error}") from None
    # Python refuses a file that is not in its encoding; `compile` takes such bytes, where they are in comments.
    encoding = _encoding(source)
    for number, line in enumerate(source.split(b"\n"), 1) if encoding.startswith("utf-8") else ():
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            byte = f"the byte {line[error.start]:#x} is no UTF-8, and no other encoding is declared"
            raise ScriptError(f"{script} has a syntax error in line {number}: {byte}") from None
    return code


def _syntax(error: SyntaxError, script: str) -> str:
    where = f" in line {error.lineno}" if error.lineno else ""  # null bytes have no line
    return f"{script} has a syntax error{where}: {error.msg}"


def observe_program(
    program: Program,
    steps: int | None = None,
    checks: Collection[str] = (),
    watch: Callable[[Observation], None] | None = None,
    at_end: Callable[[], None] | None = None,
    *,
    dry: bool = False,
) -> Outcome:
    """Run a program to its end and return what was seen; nothing that it raises comes out of here.

    A process that the program has forked leaves from here, as it would have, by SystemExit or Interrupted, and has no
    report.
    `steps` ends the program after so many optimizer steps, `checks` are those that are not always on (`batch`,
    `functions`). `watch` is called after each step, `at_end` once the program is over and before the facts are read
    out. A `dry` run has fake tensors, and is ended once enough was seen.
    """
    # The report shows the source as it was when the program began, though its author may go on editing.
    linecache.checkcache()
    linecache.getlines(program.file)
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=program.file,
        __builtins__=__builtins__,
        __cached__=program.spec.cached if program.spec else None,
        __spec__=program.spec,
        __loader__=program.spec.loader
        if program.spec
        else importlib.machinery.SourceFileLoader("__main__", program.file),
        __package__=program.spec.parent if program.spec else None,
    )
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    observation = Observation(main.__dict__, program.own, steps, checks=checks, watch=watch, dry=dry)
    if observation.dry is not None:
        observation.dry.ends = steps is None
    threads = threading.enumerate()
    ended: Ending = "end"
    status: int = 0
    error: BaseException | None = None
    scene = _Scene(main, program)
    with scene:
        try:
            observation.start()
            try:
                try:
                    run_at_foot(program.code, main.__dict__)
                except StepsReached:
                    raise
                except SystemExit as exit_:
                    ended, status = "exit", _status(exit_.code)
                _join_threads(threads)
            finally:
                observation.stop()
        except StepsReached as reached:
            ended = reached.ending
        except BaseException as raised:
            ended, status, error = "exception", 1, raised
            if isinstance(raised, KeyboardInterrupt):
                ended, status = "interrupt", 130
                if observation.dry is not None and observation.dry.interrupted:
                    ended, status, error = "steps", 0, None
            clean(raised)
        if not observation.in_own_process:
            scene.leave_set = True
            shown = show(error) if error is not None else status
            raise Interrupted if ended == "interrupt" else SystemExit(shown)
        if ended == "interrupt":
            error = None
        if at_end is not None:
            at_end()
        name, argv = legible(program.name), tuple(map(legible, program.argv[1:]))
        lost: str | None = None
        try:
            crash = crash_of(error, observation) if error is not None else None
            run = observation.run(ended, name, argv, crash)
        except Exception as failed:
            lost = f"{type(failed).__name__}: {first_line(failed)}"
            run = Run(__version__, torch.__version__, name, argv, ended, failures=(lost,))
    return Outcome(run, status, error, scene.set, lost)


def _status(code: object) -> int:
    """The exit status that Python makes of what was given to `sys.exit`; a text goes to standard error."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code
    print(code, file=sys.stderr)
    return 1


class _Scene:
    """`sys.argv`, `sys.path` and `__main__` as the program expects them, and the caller's again after it."""

    def __init__(self, main: ModuleType, program: Program) -> None:
        self._own = list(program.argv), [program.path, *sys.path[1:]], main
        self._path = sys.path
        self.leave_set = False

    def set(self) -> None:
        """Set the scene as the program has left it."""
        sys.argv, self._path[:], sys.modules["__main__"] = self._own
        sys.path = self._path

    def __enter__(self) -> None:
        self._before = sys.argv, list(sys.path), sys.modules["__main__"]
        self.set()

    def __exit__(self, *raised: object) -> None:
        if self.leave_set:
            return
        self._own = sys.argv, list(sys.path), sys.modules.get("__main__", self._own[2])
        sys.argv, self._path[:], sys.modules["__main__"] = self._before
        sys.path = self._path


def _join_threads(before: Collection[threading.Thread]) -> None:
    """Wait for what the program started and that is no daemon, as Python does before it ends.

    Workers of an executor wait for more work for ever, until Python tells them that none will come. Here only the
    program's own threads are told, for this may be the process of somebody else; pools of processes are left to Python.
    """
    managers = getattr(sys.modules.get("concurrent.futures.process"), "_threads_wakeups", {})
    queues = getattr(workers, "_threads_queues", {})
    started = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread not in before and thread not in managers
    ]
    try:
        for thread in started:
            if thread in queues:
                workers._shutdown = True
                queues[thread].put(None)
        for thread in started:
            thread.join()
    finally:
        workers._shutdown = False


def show(error: BaseException) -> int:
    """Show what has ended a program, as the interpreter does, and return the exit status."""
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as exit_:
        return _status(exit_.code)
    except BaseException as second:
        clean(second)
        print("Error in sys.excepthook:", file=sys.stderr)
        sys.__excepthook__(type(second), second, second.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, error.__traceback__)
    return 1


def crash_of(error: BaseException, observation: Observation) -> Crash:
    """Why the program ended: what torch raised, also where the program wrapped it in an exception of its own."""
    cause = cause_in(error)
    raised = Wrapper(*_told(error, observation)) if cause is not error else None
    call = call_that_raised(observation.tape, cause)
    return Crash(*_told(cause, observation), symptom_of(cause), raised, call)


def _told(error: BaseException, observation: Observation) -> tuple[str, str, Span | None]:
    """Type, message, and the innermost line of the user's."""
    span = None
    walk = error.__traceback__
    while walk is not None:
        code = walk.tb_frame.f_code
        if observation.tape.sites.kind(code.co_filename) == USER:
            span = observation.tape.sites.span((code, walk.tb_lasti))
        walk = walk.tb_next
    return type(error).__name__, first_line(error), span
