"""The call of torch's that raised what ends the program: what it was given, looked at while that is still there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gradscope.probes.backward.symptoms import symptom_of, text_of
from gradscope.probes.forward.callsites import Site
from gradscope.probes.records import OperationRecord
from gradscope.probes.tensors.quiet import unobserved
from gradscope.probes.tensors.shards import values_of

if TYPE_CHECKING:
    from gradscope.probes.tape import Tape

_NUMBERS = 16  # whole numbers that are kept of a call's arguments


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A call that raised. `error` tells the exception by its place, class and words, so that nothing holds it."""

    error: tuple[int, type, str]
    site: Site | None
    operation: int
    numbers: tuple[int, ...]
    ranges: tuple[tuple[int, int, int], ...]
    entered: Site | None


def note(
    tape: Tape,
    operation: OperationRecord,
    error: BaseException,
    arguments: Sequence[Any],
    taken: Sequence[torch.Tensor],
    entered: Site | None,
) -> None:
    """A call has raised. Programs may catch that and go on: values are read only where they may be what is wrong."""
    ranges: tuple[tuple[int, int, int], ...] = ()
    if symptom_of(error) == "index out of range":
        with unobserved():
            values = [value[0] for value in operation.inputs]
            ranges = tuple(_ranges(values, taken))
    numbers = numbers_in(arguments)
    tape.failed = FailedRecord(identity(error), operation.site, operation.serial, numbers, ranges, entered)


def _ranges(values: Sequence[int], taken: Sequence[torch.Tensor]) -> Iterator[tuple[int, int, int]]:
    for value, tensor in zip(values, taken, strict=True):
        if tensor.dtype in (torch.int64, torch.int32, torch.uint8) and tensor.numel():
            read = values_of(tensor)
            if read is not None:
                yield value, int(read.min()), int(read.max())


def identity(error: BaseException) -> tuple[int, type, str]:
    """What an exception is told by: a place in memory alone may be that of another, once this one is gone."""
    return id(error), type(error), text_of(error)


def numbers_in(arguments: Sequence[Any]) -> tuple[int, ...]:
    """The whole numbers among arguments, also in tuples and lists."""
    return tuple(_numbers(arguments))[:_NUMBERS]


def _numbers(arguments: Sequence[Any]) -> Iterator[int]:
    for argument in arguments:
        if type(argument) is int:
            yield argument
        elif isinstance(argument, (tuple, list)):
            yield from _numbers(argument)
