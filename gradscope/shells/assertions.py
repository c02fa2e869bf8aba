"""Assertions for tests: `assert_learns`, `assert_frozen`, `assert_no_gradient`.

Where an observation is at work (a marked test, `gradscope.observe`), a failing assertion tells the line at which the
gradient is lost; otherwise it shows what the graph alone tells.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from gradscope.graph.facts import Crash, Node, Operation, Received, Run
from gradscope.probes.backward.backward import WALK_LIMIT
from gradscope.probes.backward.symptoms import symptom_of
from gradscope.probes.backward.walker import outputs_in, walk
from gradscope.probes.observation import Observation, running, unrecorded
from gradscope.probes.program.names import names_in
from gradscope.probes.program.scopes import variables_of
from gradscope.probes.tensors.quiet import unobserved
from gradscope.reports.cells import Wrapper
from gradscope.reports.escaping import shown
from gradscope.reports.frames import WIDTH
from gradscope.reports.report import Report
from gradscope.reports.text import finding_text
from gradscope.rules import chosen, judge
from gradscope.rules.words import listed
from gradscope.shells.library import NothingToExplain

Tensors: TypeAlias = (
    torch.nn.Module | torch.optim.Optimizer | torch.Tensor | Mapping[str, torch.Tensor] | Iterable[torch.Tensor]
)
_CAUSES = (
    "detach",
    "no-grad",
    "rebuilt-tensor",
    "left-torch",
    "missing-create-graph",
    "non-differentiable-op",
    "unused-parameter",
)
_FACT = Wrapper(WIDTH, initial_indent="   = ", subsequent_indent="     ")
_HINT = "help: to be told where it is lost, run the computation under `gradscope.observe()` or in a marked test"


def assert_learns(what: Tensors, loss: Any) -> None:
    """Assert that a gradient from `loss` arrives at every tensor of `what`.

    `what` is a module (its parameters that require grad), an optimizer (what it holds and requires grad), a tensor, or
    a dict or iterable of tensors (each of which must require grad). `loss` is a tensor, or holds tensors. A gradient
    may be zero, as before a layer that starts at zero, but not at all tensors; it must be finite. `.grad` stays as it
    is. Call it before `backward`, which frees the graph: afterwards only the ways are seen, and no values.

    Raises AssertionError with the explanation, and NothingToExplain if there is no tensor in `what` or `loss`.
    """
    __tracebackhide__ = True
    tensors = _tensors(what, _variables())
    outputs = _outputs(loss)
    frozen = [name for name, tensor in tensors.items() if not tensor.requires_grad]
    if frozen and (len(frozen) == len(tensors) or not isinstance(what, (torch.nn.Module, torch.optim.Optimizer))):
        raise AssertionError(f"{_count(frozen, tensors)} cannot learn, requires_grad is off: {listed(frozen)}")
    wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    gradients = _gradients(outputs, list(wanted.values()))
    named = dict(zip(wanted, gradients, strict=True))
    missing = [name for name, gradient in named.items() if gradient is None]
    if missing:
        message = f"{_count(missing, wanted)} got no gradient from the loss: {listed(missing)}"
        raise AssertionError(f"{message}\n\n{_explanation(what, outputs, [wanted[name] for name in missing])}")
    with unobserved():
        values = {name: gradient for name, gradient in named.items() if isinstance(gradient, torch.Tensor)}
        wild = [name for name, gradient in values.items() if not bool(_values(gradient).isfinite().all())]
        still = bool(values) and not any(bool(_values(gradient).any()) for gradient in values.values())
    if wild:
        message = f"{_count(wild, wanted)} got a gradient from the loss that is not finite: {listed(wild)}"
        raise AssertionError(f"{message}\n\n{_explanation(what, outputs)}")
    if still:
        raise AssertionError(
            f"the gradient of the loss is exactly zero at {listed(list(values))}\n\n{_explanation(what, outputs)}"
        )


def assert_frozen(what: Tensors) -> None:
    """Assert that no tensor of `what` can learn: none requires grad, and none keeps a gradient from before.

    An optimizer still applies a gradient that is left in `.grad` when its tensor is frozen. `what` is as in
    `assert_learns`, all parameters of a module.

    Raises AssertionError that names the tensors, and NothingToExplain if there is none in `what`.
    """
    __tracebackhide__ = True
    tensors = _tensors(what, _variables())
    training = [name for name, tensor in tensors.items() if tensor.requires_grad]
    if training:
        raise AssertionError(
            f"{_count(training, tensors)} not frozen, requires_grad is on: {listed(training)}\n"
            "help: switch it off with `requires_grad_(False)`, which a module has too"
        )
    with unobserved():
        left = [
            name
            for name, tensor in tensors.items()
            if tensor.is_leaf and tensor.grad is not None and bool(_values(tensor.grad).any())
        ]
    if left:
        raise AssertionError(
            f"{_count(left, tensors)} frozen with a gradient from before, which an optimizer still applies: "
            f"{listed(left)}\nhelp: set it to None, `zero_grad()` does"
        )


def assert_no_gradient(what: Tensors, loss: Any) -> None:
    """Assert that no gradient from `loss` arrives at any tensor of `what`: a teacher, a target network, a frozen part.

    The arguments are those of `assert_learns`. A gradient that is exactly zero has arrived.

    Raises AssertionError with the way that the gradient took, and NothingToExplain if there is no tensor in `what` or
    `loss`.
    """
    __tracebackhide__ = True
    tensors = _tensors(what, _variables())
    outputs = _outputs(loss)
    wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    gradients = _gradients(outputs, list(wanted.values()))
    reached = [name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None]
    if reached:
        lines = [f"{_count(reached, tensors)} got a gradient from the loss: {listed(reached)}"]
        way = _way(wanted[reached[0]], reached[0], outputs)
        lines += _FACT.wrap(f"way of the gradient: {way}") if way else []
        lines.append("help: cut it with `.detach()` or `torch.no_grad()`, or freeze with `requires_grad_(False)`")
        raise AssertionError("\n".join(lines))


def _variables() -> dict[str, Any]:
    """The variables at the line that called the assertion, where this is not held any longer than it takes."""
    frame = sys._getframe(2)
    return {**frame.f_globals, **variables_of(frame)}


def _tensors(what: Any, variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    found: list[tuple[str | None, torch.Tensor]]
    if isinstance(what, torch.nn.Module):
        found = list(what.named_parameters())
    elif isinstance(what, torch.optim.Optimizer):
        found = [(None, tensor) for group in what.param_groups for tensor in group["params"]]
    elif isinstance(what, torch.Tensor):
        found = [(None, what)]
    elif isinstance(what, Mapping):
        found = [(str(name), tensor) for name, tensor in what.items()]
    elif isinstance(what, Iterable) and not isinstance(what, str):
        found = [(None, tensor) for tensor in what]
    else:
        found = []
    if not found or not all(isinstance(tensor, torch.Tensor) for _, tensor in found):
        kind = f"the class {what.__name__}" if isinstance(what, type) else f"this {type(what).__name__}"
        raise NothingToExplain(f"there are no tensors in {kind}: pass a module, an optimizer or tensors")
    names = _known_names(variables)
    named: dict[str, torch.Tensor] = {}
    for place, (name, tensor) in enumerate(found):
        named[shown(name or names.get(id(tensor)) or f"tensor {place}")] = tensor
    return named


def _known_names(variables: Mapping[str, Any]) -> dict[int, str]:
    names = {id(tensor): name for name, tensor in names_in(variables)}
    for name, value in variables.items():
        if isinstance(value, torch.nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            for path, parameter in value.named_parameters():
                names.setdefault(id(parameter), f"{name}.{path}")
    return names


def _outputs(loss: Any) -> list[tuple[str, torch.Tensor]]:
    found = outputs_in(loss)
    if not found:
        raise NothingToExplain(f"there is no tensor in this {type(loss).__name__}: pass the loss")
    return found


def _gradients(outputs: Sequence[tuple[str, torch.Tensor]], wanted: list[torch.Tensor]) -> list[Any]:
    """What arrives at each tensor: its gradient, None, or True where the graph is freed and only the way is left."""
    with unrecorded(), unobserved():
        roots = [tensor for _, tensor in outputs if tensor.requires_grad]
        if not roots or not wanted:
            return [None] * len(wanted)
        try:
            ones = [torch.ones_like(root) for root in roots]
            return list(torch.autograd.grad(roots, wanted, ones, retain_graph=True, allow_unused=True))
        except RuntimeError as error:
            if symptom_of(error) != "freed graph" or not all(tensor.is_leaf for tensor in wanted):
                raise
        tape = Observation({}).tape
        reached = {subject.serial for subject in walk(roots, tape.subject, WALK_LIMIT).leaves.values()}
        return [True if tape.subject(tensor).serial in reached else None for tensor in wanted]


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _count(names: Sequence[str], among: Mapping[str, object]) -> str:
    return f"{len(names)} of {len(among)} tensors" if len(among) > 1 else f"`{names[0]}`"


def _explanation(
    what: object, outputs: Sequence[tuple[str, torch.Tensor]], missing: Sequence[torch.Tensor] = ()
) -> str:
    """What the observation at work found about the tensors that miss a gradient, else what the graph reaches."""
    observation, run = _seen(what, outputs)
    with unobserved():
        serials = {observation.tape.subject(tensor).serial for tensor in missing}
    findings = judge(_relied_on(run, serials), chosen(_CAUSES)).findings
    if findings:
        return "\n\n".join(finding_text(finding, run.sources) for finding in findings)
    report = Report.of(run)
    return str(report) if running() is not None else f"{report}\n{_HINT}"


def _relied_on(run: Run, missing: Collection[int]) -> Run:
    """The last step of a run as if backward from its outputs had been refused for these tensors.

    Rules speak of tensors whose gradient someone relies on: here the assertion does, and nobody else.
    """
    last = run.steps[-1]
    return replace(
        run,
        crash=Crash("AssertionError", "", None, "no graph"),
        optimizers=(),
        step_count=0,
        steps=(replace(last, backwards=last.backwards[-1:]),),
        tensors=tuple(
            replace(tensor, optimizer=None, received=Received(0 if tensor.id in missing else 1, 1))
            for tensor in run.tensors
        ),
    )


def _seen(what: object, outputs: Sequence[tuple[str, torch.Tensor]]) -> tuple[Observation, Run]:
    """The run so far with these outputs at its end. The assertion fails: what is added to the tape harms nobody."""
    observation = running() or Observation({})
    if isinstance(what, torch.nn.Module):
        observation.add_model(what)
    elif isinstance(what, torch.optim.Optimizer):
        observation.add_optimizer(what)
    with unrecorded():
        observation.add_outputs(outputs)
    return observation, observation.run(confirm=False)


def _way(tensor: torch.Tensor, name: str, outputs: Sequence[tuple[str, torch.Tensor]]) -> str | None:
    """The shortest way from the outputs to a leaf, with lines where they were seen."""
    observation, run = _seen(None, outputs)
    with unobserved():
        serial = observation.tape.subject(tensor).serial
    backward = run.steps[-1].backwards[-1]
    nodes = {node.id: node for node in backward.nodes}
    aims = {target for node in nodes.values() for target, _ in node.edges}
    before: dict[int, int | None] = {node: None for node in nodes if node not in aims}
    waiting = list(before)
    for current in waiting:
        if nodes[current].tensor == serial:
            return shown(" -> ".join([*_stations(nodes, before, current, run), name]))
        for target, _ in nodes[current].edges:
            if target not in before:
                before[target] = current
                waiting.append(target)
    return None


def _stations(nodes: Mapping[int, Node], before: Mapping[int, int | None], end: int, run: Run) -> list[str]:
    operations = {operation.id: operation for step in run.steps for operation in step.operations}
    stations: list[str] = []
    current = before[end]
    while current is not None:
        node = nodes[current]
        operation = operations.get(node.operation) if node.operation is not None else None
        station = _station(operation) if operation is not None else node.name
        if not stations or stations[0] != station:
            stations.insert(0, station)
        current = before[current]
    return stations


def _station(operation: Operation) -> str:
    place = f" ({operation.span.file}:{operation.span.line})" if operation.span is not None else ""
    return operation.name.rpartition(".")[2] + place
