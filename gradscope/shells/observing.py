"""`gradscope.observe`: a `with` block, or a decorator on a training step that stays in the code."""

from __future__ import annotations

import atexit
import functools
import inspect
import sys
from collections import ChainMap
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, cast, overload

import torch

from gradscope.graph.facts import Crash
from gradscope.probes.observation import Observation, running
from gradscope.probes.program.scopes import variables_of
from gradscope.probes.program.scripts import crash_of
from gradscope.reports.report import Report
from gradscope.rules import chosen
from gradscope.shells.awaiting import await_within
from gradscope.shells.decorated import Observed, off, warn_user
from gradscope.shells.switch import is_off

P = ParamSpec("P")
R = TypeVar("R")
OnFinding = Literal["warn", "raise"] | Callable[[Report], Any]
_STEPS = 5


@overload
def observe(function: Callable[P, R], /) -> Observed[P, R]: ...


@overload
def observe(
    *,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    steps: int = _STEPS,
    every: int | None = None,
    on_finding: OnFinding | None = None,
    operations: bool = True,
    dry: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Observer: ...


def observe(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Record what torch does, in a `with` block or in a decorated training step.

        with gradscope.observe(model=model, optimizer=optimizer) as seen:
            for batch in loader:
                training_step(batch)
        print(seen.report())

        @gradscope.observe(steps=3)
        def training_step(batch): ...

    `model` and `optimizer` give names to what existed before; `tensors` names plain tensors. What runs inside gives
    bit-identical results, and all probes are taken out at the end, also after an exception. `select` and `ignore` are
    names of rules: those that are asked alone, and those that are not asked.

    As a decorator, bare or with arguments, it takes functions, methods and generators whose every item is a step, and
    the same with `async def`, of which it looks at nothing that runs while they wait. It looks at the first `steps`
    calls (default 5), then takes itself out; `every=1000` looks again from every thousandth call on. When it has
    looked, findings that are at least warnings are told as `on_finding` says: "warn" (the default) as a
    GradscopeWarning, "raise" as FindingsRaised, or a function is called with the report. Where backward and step are
    done by the caller, a call lasts until the next one begins. `step.report()` gives the latest report of a decorated
    `step`. `GRADSCOPE=0` in the environment leaves the function as it is; its report says so.

    `operations=False` is the counting form: which tensors get gradients and how far they move, without the operations,
    so without places and pictures.

    `dry=True` runs what is observed with fake tensors: nothing is computed, whatever the size, and what reads a value
    gets a stand-in. Tensors that existed before keep their values, gradients and optimizer states.

    Blocks do not nest: entering a second one raises RuntimeError; a decorated step inside is merely called.
    """
    return Observer(**options) if function is None else Observer(**options)(function)


class Observer:
    """What `gradscope.observe` gives: a context manager that is a decorator as well."""

    _running = False

    def __init__(
        self,
        *,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        steps: int = _STEPS,
        every: int | None = None,
        on_finding: OnFinding | None = None,
        operations: bool = True,
        dry: bool = False,
        select: Iterable[str] = (),
        ignore: Iterable[str] = (),
    ) -> None:
        check_instances(model, optimizer)
        self._rules = names_in(select), names_in(ignore)
        chosen(*self._rules)
        if steps < 1 or (every is not None and every < steps):
            raise ValueError(f"steps must be at least 1, and every at least steps, not {steps} and {every}")
        if not (on_finding in (None, "warn", "raise") or callable(on_finding)):
            raise ValueError(f'on_finding must be "warn", "raise" or a function of a report, not {on_finding!r}')
        self._tensors = dict(tensors or {})
        self._model, self._optimizer = model, optimizer
        self._steps, self._every = steps, every
        self._on_finding = on_finding
        self._operations, self._dry = operations, dry
        self._observation: Observation | None = None
        self._crash: Crash | None = None
        self._function: Callable[..., Any] | None = None
        self._calls = self._seen = 0
        self._open = False
        self._told: set[object] = set()

    # --- as a `with` block -------------------------------------------------------------------------------

    def __enter__(self) -> Observer:
        if Observer._running:
            raise RuntimeError(
                "gradscope is observing already: leave the first `with gradscope.observe()` before the second"
            )
        frame = sys._getframe(1)
        observation = self._prepare(frame.f_globals)
        _add_optimizers(observation, variables_of(frame))
        observation.start(self._operations)
        Observer._running = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._observation is not None
        self._observation.stop()
        Observer._running = False
        if isinstance(error, Exception):
            self._crash = crash_of(error, self._observation)
        elif error is None and self._on_finding is not None:
            self._tell()

    def _prepare(self, *variables: Mapping[str, Any]) -> Observation:
        observation = Observation(ChainMap(self._tensors, *map(dict, variables)), dry=self._dry)
        if self._model is not None:
            observation.add_model(self._model)
        if self._optimizer is not None:
            observation.add_optimizer(self._optimizer)
        for found in variables:
            _add_optimizers(observation, found)
        self._observation, self._crash = observation, None
        return observation

    # --- as a decorator ----------------------------------------------------------------------------------

    def __call__(self, function: Callable[P, R]) -> Observed[P, R]:
        """Decorate a training step."""
        if self._dry:
            raise TypeError("dry=True is for a `with` block: what a decorated step gives would be fake")
        return cast("Observed[P, R]", off(function) if is_off() else self._decorated(function))

    def _decorated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._function = function
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def steps(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                return self._drive(function, args, function(*args, **kwargs))

            wrapped: Any = steps
        elif inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            def steps_awaited(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
                return self._drive_awaited(function, args, function(*args, **kwargs))

            wrapped = steps_awaited
        elif inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def step_awaited(*args: Any, **kwargs: Any) -> Any:
                if not self._is_due():
                    return await function(*args, **kwargs)
                return await self._watch_awaited(function, args, function(*args, **kwargs))

            wrapped = step_awaited
        else:

            @functools.wraps(function)
            def step(*args: Any, **kwargs: Any) -> Any:
                if not self._is_due():
                    return function(*args, **kwargs)
                return self._watch(function, args, functools.partial(function, *args, **kwargs))

            wrapped = step
        wrapped.report = self.report
        return cast("Callable[..., Any]", wrapped)

    def _is_due(self) -> bool:
        """Whether the call that begins now is one to look at; counts it."""
        call = self._calls
        self._calls = call + 1
        if self._open:
            if self._seen < self._steps:
                return True
            self._close()
        return call == 0 or (self._every is not None and call % self._every == 0)

    def _watch(self, function: Callable[..., Any], args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if not self._open and not self._begin(function, args):
            return call()
        with self._looking() as observation, observation.recording():
            return call()

    async def _watch_awaited(
        self, function: Callable[..., Any], args: tuple[Any, ...], awaitable: Awaitable[Any]
    ) -> Any:
        if not self._open and not self._begin(function, args):
            return await awaitable
        with self._looking() as observation:
            return await await_within(observation.recording, awaitable)

    @contextmanager
    def _looking(self) -> Iterator[Observation]:
        """The time of one call. The end of a generator is none."""
        observation = self._observation
        assert observation is not None
        try:
            yield observation
        except (StopIteration, StopAsyncIteration):
            raise
        except BaseException as error:
            self._raised(error, observation)
            raise
        self._returned(observation)

    def _raised(self, error: BaseException, observation: Observation) -> None:
        if observation is self._observation and self._open:
            if isinstance(error, Exception):
                self._crash = crash_of(error, observation)
            self._close(raising=True)

    def _returned(self, observation: Observation) -> None:
        """A call is over. One that others have outrun, while it waited, finds its observation closed."""
        if observation is self._observation and self._open:
            self._seen += 1
            # Who leaves backward and step to the caller is observed until the next call.
            if self._seen >= self._steps and observation.steps_so_far >= self._seen:
                self._close()

    def _begin(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Put the probes in, unless others are at work already: then the report is theirs."""
        others = running()
        if others is not None:
            self._observation, self._crash = others, None
            return False
        closed_over = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
        observation = self._prepare(closed_over, getattr(function, "__globals__", {}))
        if self._model is None and args and isinstance(args[0], torch.nn.Module):
            observation.add_model(args[0], "self")
        observation.start(self._operations, recording=False)
        self._open, self._seen = True, 0
        atexit.register(self._close)
        return True

    def _close(self, raising: bool = False) -> None:
        """Take the probes out and tell what was found."""
        if self._open:
            self._open = False
            atexit.unregister(self._close)
            assert self._observation is not None
            self._observation.stop()
            self._tell(raising)

    def _tell(self, raising: bool = False) -> None:
        """Tell of findings as it was asked for; where the program raises itself, a raise of ours would hide it."""
        report = self.report()
        new = {(found.rule, found.span) for found in report.at_least("warning")} - self._told
        if not new:
            return
        self._told |= new
        if callable(self._on_finding):
            self._on_finding(report)
        elif self._on_finding == "raise" and not raising:
            report.raise_for_findings("warning")
        else:
            warn_user(f"gradscope found trouble\n{report}", self._function)

    def _drive(
        self, function: Callable[..., Any], args: tuple[Any, ...], items: Generator[Any, Any, Any]
    ) -> Generator[Any, Any, Any]:
        """The generator itself, each of its steps a call."""
        resume = functools.partial(next, items)
        while True:
            try:
                item = self._watch(function, args, resume) if self._is_due() else resume()
            except StopIteration as end:
                return end.value
            try:
                resume = functools.partial(items.send, (yield item))
            except GeneratorExit:
                items.close()
                raise
            except BaseException as error:
                resume = functools.partial(items.throw, error)

    async def _drive_awaited(
        self, function: Callable[..., Any], args: tuple[Any, ...], items: AsyncGenerator[Any, Any]
    ) -> AsyncGenerator[Any, Any]:
        """The same of an async generator."""
        resume = functools.partial(items.asend, None)
        while True:
            try:
                item = await (self._watch_awaited(function, args, resume()) if self._is_due() else resume())
            except StopAsyncIteration:
                return
            try:
                resume = functools.partial(items.asend, (yield item))
            except GeneratorExit:
                await items.aclose()
                raise
            except BaseException as error:
                resume = functools.partial(items.athrow, error)

    # --- the report --------------------------------------------------------------------------------------

    def report(self) -> Report:
        """The report on what was seen so far; may be asked for inside the block and after it."""
        if self._observation is None:
            raise RuntimeError("nothing was observed yet: enter the `with` block, or call the decorated step, first")
        ended: Literal["end", "exception"] = "end" if self._crash is None else "exception"
        return Report.of(self._observation.run(ended, crash=self._crash), *self._rules)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        if self._observation is None:
            return {"text/plain": repr(self)}
        return self.report()._repr_mimebundle_()


def _add_optimizers(observation: Observation, variables: Mapping[str, Any]) -> None:
    """Know the optimizers that exist before: what they have stepped in is counted from the first step on."""
    for value in list(variables.values()):
        if isinstance(value, torch.optim.Optimizer):
            observation.add_optimizer(value)


def check_instances(model: object, optimizer: object) -> None:
    """Raise TypeError if a model or an optimizer that was given is none."""
    for name, value, kind in (("model", model, torch.nn.Module), ("optimizer", optimizer, torch.optim.Optimizer)):
        if value is not None and not isinstance(value, kind):
            given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise TypeError(f"{name} must be an instance of {kind.__name__}, not {given}")


def names_in(rules: Iterable[str]) -> tuple[str, ...]:
    """The names of rules as they are given: in any order, or in one text with commas as on the command line."""
    return tuple(name.strip() for name in rules.split(",")) if isinstance(rules, str) else tuple(rules)
