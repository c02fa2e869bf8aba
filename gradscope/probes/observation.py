"""One observation: every probe put in, the facts read out, every probe taken out again."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from gradscope import __version__
from gradscope.graph.facts import Crash, Ending, Observed, Run
from gradscope.probes.asked.batches import check_module
from gradscope.probes.asked.functions import check_function
from gradscope.probes.asked.outputs import confirm, confirm_outputs
from gradscope.probes.backward.backward import watch_backward
from gradscope.probes.backward.custom import watch_custom_backwards
from gradscope.probes.backward.masks import watch_masks
from gradscope.probes.backward.nonfinite import explain_crash
from gradscope.probes.backward.recomputes import watch_recomputes
from gradscope.probes.dry.running import DryRun
from gradscope.probes.forward.callsites import CallSites
from gradscope.probes.forward.compiled import watch_compiled
from gradscope.probes.forward.fastpaths import watch_fast_paths
from gradscope.probes.forward.functions import watch_functions
from gradscope.probes.forward.inference import watch_inference_mode
from gradscope.probes.forward.modules import add_root, name_roots, watch_modules
from gradscope.probes.forward.profilers import imported_code_kept
from gradscope.probes.forward.recorder import Recorder
from gradscope.probes.forward.tracing import watch_tracing
from gradscope.probes.forward.transforms import watch_transforms
from gradscope.probes.freezing import freeze
from gradscope.probes.program.recursion import limit_kept
from gradscope.probes.program.scopes import is_a, modules_in
from gradscope.probes.program.stacks import hidden_modes
from gradscope.probes.program.threads import watch_threads
from gradscope.probes.program.tracebacks import tracebacks_without_ours
from gradscope.probes.program.warned import warnings_in_place
from gradscope.probes.tape import Tape
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.tensors.swapping import swaps_allowed
from gradscope.probes.training.clips import watch_clips
from gradscope.probes.training.modes import watch_modes
from gradscope.probes.training.optimizers import add_optimizer, watch_optimizers
from gradscope.probes.training.scalers import watch_scalers

_RUNNING: list[Observation] = []


def running() -> Observation | None:
    """The innermost observation that is at work now."""
    return next((observation for observation in reversed(_RUNNING) if not observation.tape.closed), None)


@contextmanager
def unrecorded() -> Iterator[None]:
    """A backward of ours is no part of what observations see."""
    tapes = [observation.tape for observation in _RUNNING]
    tapes = [tape for tape in tapes if tape.thread() not in tape.backwards_running]
    for tape in tapes:
        tape.backwards_running.add(tape.thread())
    try:
        yield
    finally:
        for tape in tapes:
            tape.backwards_running.discard(tape.thread())


def _disarm() -> None:
    """In a forked worker the program runs without us: what we recorded there, nobody would read."""
    for observation in _RUNNING:
        observation.tape.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disarm)


class Observation:
    """Watches everything that torch does between `start` and `stop`.

    `namespace` gives the program's variables, for names; `own` are library folders that count as the user's.
    `steps` ends the program after so many optimizer steps; `watch` is called after each. `checks` are those that are
    not always on: `batch`. A `dry` observation runs the program with fake tensors.
    not always on: `batch`, `functions`.
    """

    def __init__(
        self,
        namespace: Mapping[str, Any],
        own: tuple[str, ...] = (),
        steps: int | None = None,
        folder: str | None = None,
        watch: Callable[[Observation], None] | None = None,
        checks: Collection[str] = (),
        dry: bool = False,
    ) -> None:
        self.namespace = namespace
        self.tape = Tape(CallSites(folder, own))
        self.tape.name_all = self._name_all
        if watch is not None:
            self.tape.step_ended = lambda: watch(self)
        self.steps = steps
        if "batch" in checks:
            self.tape.check_calls = functools.partial(check_module, self.tape)
        self.dry = DryRun(self.tape) if dry else None
        if "functions" in checks:
            self.tape.check_function = functools.partial(check_function, self.tape)
        self.given: dict[int, str] = {}
        self.began = time.perf_counter()
        self.seconds = 0.0
        self._operations = True
        self._stack = ExitStack()
        self._process = os.getpid()

    @staticmethod
    def is_running() -> bool:
        """Whether some observation is at work in this process."""
        return running() is not None

    def start(self, operations: bool = True, recording: bool = True) -> None:
        """Put the probes in; one that does not fit this torch is left out, and the report says so.

        Without `operations`, gradients and moves are counted and nothing else. Without `recording`, the calling
        thread records operations only inside `self.recording()`.
        """
        self._operations = operations
        with ExitStack() as stack:
            self._put_in(stack)
            if recording:
                stack.enter_context(self.recording())
            self._stack = stack.pop_all()
        _RUNNING.append(self)
        self.began = time.perf_counter()

    def recording(self) -> AbstractContextManager[Any]:
        """Records the operations of the calling thread, if operations are recorded at all."""
        return Recorder(self.tape) if self._operations else nullcontext()

    def _put_in(self, stack: ExitStack) -> None:
        tape = self.tape
        tape.walking = self._operations
        if self.dry is not None:
            stack.enter_context(self.dry())
        enough = self.dry.step_ended if self.dry is not None else None
        probes: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            "swapped tensors": lambda: swaps_allowed(tape),
            "backward": lambda: watch_backward(tape),
            "optimizers": lambda: watch_optimizers(tape, self.steps, enough),
            "clips": lambda: watch_clips(tape),
            "scalers": lambda: watch_scalers(tape),
        }
        if self._operations:
            probes |= {
                "recursion": limit_kept,
                "modes": hidden_modes,
                "profilers": imported_code_kept,
                "tracebacks": tracebacks_without_ours,
                "warnings": warnings_in_place,
                "threads": lambda: watch_threads(tape),
                "modules": lambda: watch_modules(tape),
                "train and eval": lambda: watch_modes(tape),
                "hooks": lambda: watch_masks(tape),
                "Function.apply": lambda: watch_functions(tape),
                "fused kernels": lambda: watch_fast_paths(tape),
                "torch.func": lambda: watch_transforms(tape),
                "custom backwards": lambda: watch_custom_backwards(tape),
                "checkpoints": lambda: watch_recomputes(tape),
                "compiled regions": lambda: watch_compiled(tape),
                "traces": lambda: watch_tracing(tape),
                "inference mode": lambda: watch_inference_mode(tape),
            }
        for watched, probe in probes.items():
            try:
                stack.enter_context(probe())
            except Exception as error:
                tape.fail(f"watching {watched} with torch {torch.__version__}", error)
        if self.dry is not None:
            stack.enter_context(self.dry.threads())

    def stop(self) -> None:
        """Take the probes out; safe to call twice, and in a forked process, where the tape is closed already."""
        if not self.tape.closed:
            self.seconds = time.perf_counter() - self.began
        self._stack.close()
        self.tape.close()
        if self in _RUNNING:
            _RUNNING.remove(self)

    @property
    def in_own_process(self) -> bool:
        """False in a process that the program has forked."""
        return os.getpid() == self._process

    def add_model(self, model: torch.nn.Module, label: str = "model") -> None:
        """Know a module before it is first called."""
        with unobserved():
            add_root(self.tape, model, None, label)

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Know an optimizer that was made before the observation."""
        add_optimizer(self.tape, optimizer, None)
        if self.dry is not None:
            self.dry.keep(optimizer)

    def add_outputs(self, outputs: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Walk and confirm these outputs, given with the path to each inside what the user passed."""
        with unobserved():
            for path, tensor in outputs:
                subject = self.tape.subject(tensor)
                self.given[subject.serial] = f"output{path}"
            refused = confirm(self.tape, [tensor for _, tensor in outputs])
        if refused is not None:
            freed = "a second time" in refused  # so torch calls it, without an exception of its own
            why = "a backward has freed its graph: explain it before `backward()`" if freed else refused
            self.tape.failures[f"which gradients arrive was not confirmed, the graph was only walked: {why}"] = None

    @property
    def steps_so_far(self) -> int:
        """Steps of optimizers, or backwards where there is no optimizer."""
        return self.tape.step_count if self.tape.optimizers else self.tape.backward_count

    def _observed(self) -> tuple[Observed, ...]:
        values: tuple[Observed, ...] = ("values",) if self.dry is None else ()
        return ("operations", *values) if self._operations else values

    def _name_all(self) -> None:
        """Read names while their owners are alive."""
        for name, module in modules_in(self.namespace, self.tape.sites):
            if not is_a(module, torch.jit.ScriptModule) and self.tape.mark(module).root is None:
                add_root(self.tape, module, None, name)
        name_roots(self.tape)

    def run(
        self,
        ended: Ending = "end",
        script: str | None = None,
        argv: tuple[str, ...] = (),
        crash: Crash | None = None,
        confirm: bool = True,
    ) -> Run:
        """The facts so far; with `confirm`, outputs of a program that called no backward are differentiated for it."""
        seconds = self.seconds or time.perf_counter() - self.began
        with unobserved():
            try:
                self.tape.backlog.catch_up(rest=False)
                self._name_all()
                if crash is not None:
                    explain_crash(self.tape, crash.message)
                if confirm and ended != "exception":
                    confirm_outputs(self.tape)
            except Exception as error:
                self.tape.fail("naming", error)
        frozen = freeze(self.tape, self.namespace, self.given)
        tape = self.tape
        return Run(
            gradscope=__version__,
            torch=torch.__version__.partition("+")[0],
            script=script,
            argv=argv,
            ended=ended,
            seconds=seconds,
            step_count=self.steps_so_far,
            backward_count=tape.backward_count,
            crash=crash,
            tensors=frozen.tensors,
            values=frozen.values,
            steps=frozen.steps,
            optimizers=frozen.optimizers,
            modules=frozen.modules,
            losses=frozen.losses,
            discards=frozen.discards,
            growths=frozen.growths,
            functions=frozen.functions,
            modes=frozen.modes,
            nonfinite=frozen.nonfinite,
            profiles=frozen.profiles,
            batches=frozen.batches,
            probabilities=frozen.probabilities,
            softmaxes=frozen.softmaxes,
            training_calls=frozen.training_calls,
            compared=frozen.compared,
            twins=frozen.twins,
            lookups=frozen.lookups,
            sources=frozen.sources,
            whole=frozen.whole,
            comments=frozen.comments,
            observed=self._observed(),
            dry=self.dry.facts() if self.dry is not None else None,
            failures=tuple(tape.failures),
        )
