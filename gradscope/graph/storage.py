"""A run as compressed JSON: kept once, reported on as often as one likes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import msgspec

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Run
from gradscope.graph.texts import encoded

SCHEMA = "gradscope.run/1"
_GZIP = b"\x1f\x8b"
_LEVEL = 3  # a twentieth larger than at 6, in a third of the time
_FIRST = 1 << 16
_LARGEST = 1 << 30  # unpacked: more than twice the largest run that was ever seen


class RunUnreadable(GradscopeError):
    """A kept run cannot be read."""


class _Header(msgspec.Struct):
    schema: str


def encode(run: Run) -> bytes:
    """The run as JSON in UTF-8, compressed by gzip; equal runs give equal bytes."""
    return gzip.compress(encoded(run), _LEVEL, mtime=0)


def decode(data: bytes, name: str = "the run") -> Run:
    """The run that `encode` wrote, or its plain JSON. Raises RunUnreadable: one line on what is wrong with `name`."""
    return read(unpacked(data, name), name)


def unpacked(data: bytes, name: str) -> bytes:
    """What was compressed, or the data itself where it was not. Raises RunUnreadable."""
    if not data.startswith(_GZIP):
        return data
    reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        # A little first: a few bytes can stand for gigabytes of something else.
        text = reader.decompress(data, _FIRST)
        if text and not text.lstrip().startswith(b"{"):
            raise _no_run(name)
        text += reader.decompress(reader.unconsumed_tail, _LARGEST)
    except zlib.error as error:
        raise RunUnreadable(f"{name} is damaged: {error}") from None
    if reader.unconsumed_tail:
        raise RunUnreadable(f"{name} is no kept run: unpacked it has more than {_LARGEST >> 30} GiB")
    if not reader.eof:
        raise RunUnreadable(f"{name} is cut short: make it again with `gradscope explain --save`")
    if reader.unused_data:
        raise RunUnreadable(f"{name} is damaged: something follows the run in it")
    return text


def _no_run(name: str) -> RunUnreadable:
    return RunUnreadable(f"{name} is not a kept run: make one with `gradscope explain --save RUN.json SCRIPT`")


def read(data: bytes, name: str) -> Run:
    """The run in plain JSON. Raises RunUnreadable."""
    try:
        header = msgspec.json.decode(data, type=_Header)
    except msgspec.ValidationError:
        raise _no_run(name) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RunUnreadable(f"{name} is cut short or not JSON: make it again with `gradscope explain --save`") from None
    if header.schema != SCHEMA:
        raise RunUnreadable(
            f"{name} has the schema {header.schema!r} and this gradscope reads {SCHEMA!r}: make the run again"
        )
    try:
        return msgspec.json.decode(data, type=Run)  # ids, counts and norms that cannot be are refused here
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


def contents(path: Path) -> bytes:
    """The unpacked bytes of a file. Raises RunUnreadable."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunUnreadable(f"no such file: {path}") from None
    except OSError as error:
        raise RunUnreadable(f"cannot read {path}: {error.strerror or error}") from None
    return unpacked(data, str(path))


def checked(data: bytes, name: str) -> Run:
    """The run in plain JSON, all of whose facts name only what is there. Raises RunUnreadable."""
    run = read(data, name)
    _check_references(run, name)
    return run


def load(path: Path) -> Run:
    """Read a kept run. Raises RunUnreadable."""
    return checked(contents(path), str(path))
