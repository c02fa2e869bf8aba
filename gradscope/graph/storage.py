"""A run as JSON: kept once, reported on as often as one likes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Run
from gradscope.graph.texts import encoded

SCHEMA = "gradscope.run/1"


class RunUnreadable(GradscopeError):
    """A kept run cannot be read."""


class _Header(msgspec.Struct):
    schema: str


def encode(run: Run) -> bytes:
    """The run as JSON in UTF-8."""
    return encoded(run)


def decode(data: bytes, name: str = "the run") -> Run:
    """The run that `encode` wrote. Raises RunUnreadable with one line that says what is wrong with `name`."""
    try:
        header = msgspec.json.decode(data, type=_Header)
    except msgspec.ValidationError:
        raise RunUnreadable(
            f"{name} is not a kept run: make one with `gradscope explain --save RUN.json SCRIPT`"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RunUnreadable(f"{name} is cut short or not JSON: make it again with `gradscope explain --save`") from None
    if header.schema != SCHEMA:
        raise RunUnreadable(
            f"{name} has the schema {header.schema!r} and this gradscope reads {SCHEMA!r}: make the run again"
        )
    try:
        return msgspec.json.decode(data, type=Run)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunUnreadable(f"{name} is damaged: {error}") from None


def _check_references(run: Run, name: str) -> None:
    """Facts name each other by number; what they name must be there."""
    values = {value.id for value in run.values}
    held = {value.tensor for value in run.values}.union(*(optimizer.tensors for optimizer in run.optimizers))
    used: set[int] = set()
    for step in run.steps:
        used.update(*((*operation.inputs, *operation.outputs) for operation in step.operations))
        used.update(*(backward.roots for backward in step.backwards))
        held.update(*(backward.arrivals for backward in step.backwards))
    held.update(growth.tensor for growth in run.growths)
    held.update(*(discard.tensors for discard in run.discards))
    optimizers = {optimizer.id for optimizer in run.optimizers}
    named = {tensor.optimizer for tensor in run.tensors if tensor.optimizer is not None}
    if not (held <= {tensor.id for tensor in run.tensors} and used <= values and named <= optimizers):
        raise RunUnreadable(f"{name} is damaged: some of its facts name others that are not there")


def load(path: Path) -> Run:
    """Read a kept run. Raises RunUnreadable."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunUnreadable(f"no such file: {path}") from None
    except OSError as error:
        raise RunUnreadable(f"cannot read {path}: {error.strerror or error}") from None
    run = decode(data, str(path))
    _check_references(run, str(path))
    return run
