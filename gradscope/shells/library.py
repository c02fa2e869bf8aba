"""The library: `explain`, `check_batch`, `render` and `confirm`."""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Run
from gradscope.probes.asked.batches import check_module
from gradscope.probes.asked.snapshots import reachable, snapshot
from gradscope.probes.backward.walker import outputs_in
from gradscope.probes.observation import Observation
from gradscope.probes.program.scopes import variables_of
from gradscope.reports.report import Report
from gradscope.rules import chosen
from gradscope.shells.observing import check_instances, names_in, observe


class NothingToExplain(GradscopeError, TypeError):
    """The output holds no tensor, or none that any gradient could flow from."""


def explain(
    output: Any,
    *,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Report:
    """Explain the autograd graph behind an output that exists already.

    `output` is a tensor, or a tuple, list, dict, dataclass or model output of tensors. The report tells which
    leaves the gradient flow reaches, and confirms it with `torch.autograd.grad` on the sum of each output where
    the graph has not been freed; `.grad` is left as it is. `model` and `optimizer` give names and roles, `select` and
    `ignore` name the rules that are asked alone and those that are not asked.

    What was cut off on the way has left no trace in the graph: to be told where, run the computation under
    `gradscope.observe` or `gradscope explain script.py`.

    Raises NothingToExplain if there is no tensor in `output`, or none that has a history.
    """
    select, ignore = names_in(select), names_in(ignore)
    chosen(select, ignore)
    return Report.of(_run_of(output, _variables(), model, optimizer), select, ignore)


def _run_of(
    output: Any,
    namespace: Mapping[str, Any],
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Run:
    found = outputs_in(output)
    if not found:
        raise NothingToExplain(
            f"there is no tensor in this {type(output).__name__}: pass what the model returned, or its loss"
        )
    check_instances(model, optimizer)
    if not any(tensor.requires_grad for _, tensor in found):
        what = "this output has no" if len(found) == 1 else f"none of these {len(found)} outputs has a"
        raise NothingToExplain(
            f"{what} history: no gradient flows from it, so nothing can learn by it. "
            "Pass it as it is before `detach` or outside of `no_grad`; to be told where it was cut off, "
            "compute it under `gradscope.observe`"
        )
    observation = Observation(namespace)
    if model is not None:
        observation.add_model(model)
    if optimizer is not None:
        observation.add_optimizer(optimizer)
    observation.add_outputs(found)
    return observation.run()


def _variables() -> Mapping[str, Any]:
    """The variables at the line that called the library."""
    frame = sys._getframe(2)
    return ChainMap(variables_of(frame), frame.f_globals)


def check_batch(model: torch.nn.Module, inputs: Any) -> Report:
    """Check whether the output of one sample depends on other samples of a batch.

    `inputs` is what the model is called with: a tensor, a tuple or list of arguments, or a dict of keyword arguments;
    the first dimension of the first tensor counts the samples, of which there must be at least two. A copy of the model
    is called; the model, its gradients and random numbers stay as they are. Batch norm in training mode mixes samples
    by design: it is told apart, and set aside to look for other reasons.

    Raises TypeError if `model` is no module, NothingToExplain if `inputs` holds no batch, and what the model raises.
    """
    check_instances(model, None)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    observation = Observation(_variables())
    observation.add_model(model)
    observation.start()
    try:
        checked = check_module(observation.tape, model, args, kwargs, strict=True)
    finally:
        observation.stop()
    if not checked:
        raise NothingToExplain("there is no batch in these inputs: the first tensor needs at least two samples")
    return Report.of(observation.run())


def render(
    what: Any,
    path: str | Path,
    *,
    style: Literal["gradscope", "torchviz"] = "gradscope",
    model: torch.nn.Module | None = None,
    depth: int | None = None,
    open: Sequence[str] = (),  # noqa: A002 - the word of the command line
) -> None:
    """Draw a graph to a `.png`, `.svg`, `.pdf` or `.dot` file, or write the report with its graph as `.html`.

    `what` is an output as `explain` takes it, a `Report` or a `Run`. Modules and functions are groups; `depth` says
    down to which level they are open (1: all closed), by default as far as fits a page. `open` are paths of further
    groups to open, such as `model.blocks.7`, with `*` for any. The style `torchviz` draws what the torchviz package
    draws. Raises DrawingError where the file cannot be written or laid out in time, or there is no such style or depth.
    """
    if isinstance(what, Report):
        report = what
    else:
        report = Report.of(what if isinstance(what, Run) else _run_of(what, _variables(), model))
    report.render(path, style, depth=depth, open=open)


def confirm(
    step: Callable[[], Any],
    steps: int = 5,
    *,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    restore: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Report:
    """Call a training step `steps` times under observation, and report what got a gradient and what moved.

    `step` takes no arguments and does one whole step: forward, backward, `optimizer.step()`. Its exceptions pass
    through. With `restore`, everything that the step can reach by name is put back afterwards: parameters, buffers
    and gradients of modules, leaves that require grad, states of optimizers and schedulers, and the random states of
    torch, Python and numpy. `select` and `ignore` name the rules that are asked alone and those that are not asked.
    Raises ValueError if `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    named = [model, optimizer, *(tensors or {}).values()]
    with ExitStack() as stack:
        if restore:
            stack.callback(snapshot([*named, *reachable(step, _variables())]))
        with observe(model=model, optimizer=optimizer, tensors=tensors, select=select, ignore=ignore) as seen:
            for _ in range(steps):
                step()
        return seen.report()
