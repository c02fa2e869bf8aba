"""Whole lines of ours among what the script writes, and only where its own line is at an end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from gradscope.probes.program.tracebacks import hide

# What a script may send without drawing in place: colours, and erasing within the line that it is writing.
_HARMLESS = re.compile(rb"\x1b\[[0-9;:]*m|\x1b\[[012]?K")
_ESCAPE = b"\x1b"
_OFTEN = 0.05  # seconds: who writes lines more often than this gives us occasion enough

_Unheard = tuple[int, ...]


class Lines:
    """Writes lines to a stream that the script may write to as well, without touching a character of the script's.

    Nothing is ever drawn in place, and nothing begins but where the cursor is known to be at the beginning of a line:
    the last that any stream of the script's sent to the same place ended in a newline, and nobody else has written
    since. What cannot be told there and then waits for the next line of the script's to end, and is never told where
    none does. A script that moves the cursor over several lines, or that took the terminal out of its usual mode, has
    the screen to itself.

    The innermost part of each stream is listened to, so that what counts is what has left Python's buffers, in its
    order. What a subprocess or a library in C writes cannot be heard, but the kernel counts it.
    """

    def __init__(self, stream: TextIO, *others: TextIO | None) -> None:
        self._stream = stream
        self._waiting: list[str] = []
        self._terminal = stream.isatty()
        self._place = _place(stream)
        self._voice: Callable[[Any], Any] = _innermost(stream).write
        self._ends: dict[object, bool] = {}  # of each place: whether the last that was sent there ended a line
        self._draws = False
        self._heard = 0  # bytes, wherever to
        self._ears: list[tuple[Any, Callable[..., Any]]] = []
        self._listened = [stream, *(other for other in others if other is not None)]
        self._owner = os.getpid()
        self._sampled = 0.0
        self._unheard: _Unheard | None = None
        self.last = time.monotonic()  # when anything of the script's was heard

    def __enter__(self) -> Lines:
        for stream in self._listened:
            inner = _innermost(stream)
            if all(inner is not known for known, _ in self._ears):
                self._listen(inner, _place(stream))
        self._unheard = self._count()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for inner, ear in self._ears:
            if vars(inner).get("write") is ear:
                del inner.write
        self._ears.clear()

    def put(self, line: str) -> None:
        """Tell a line as soon as it may be told."""
        self._waiting.append(line)
        self.tell()

    def tell(self) -> bool:
        """Tell what waits, if now is the time. Returns whether it was."""
        free = self._is_free()
        if free and self._waiting:
            self._write()
        return free

    def at_beginning(self, stream: TextIO | None) -> bool:
        """Whether the last that the script sent to where this stream leads ended a line, as far as was heard."""
        return stream is None or self._ends.get(_place(stream), True)

    def _listen(self, inner: Any, place: object) -> None:
        original = inner.write

        def write(data: Any) -> Any:
            try:
                written = original(data)
            except BaseException as error:
                hide(error)
                raise
            self._hear(data, written, place)
            return written

        try:
            inner.write = write
        except AttributeError:  # a stream that cannot be listened to: nothing is known of the cursor
            self._draws |= place == self._place
        else:
            self._ears.append((inner, write))

    def _hear(self, data: Any, written: int | None, place: object) -> None:
        count = written or 0
        if not count:
            return
        self._heard += count
        self.last = now = time.monotonic()
        sent = data.encode("utf-8", "replace") if isinstance(data, str) else bytes(data)[:count]
        ends = self._ends[place] = sent.endswith(b"\n")
        if place != self._place:
            return
        self._draws = self._draws or (_ESCAPE in sent and _ESCAPE in _HARMLESS.sub(b"", sent))
        if not ends:
            return
        if self._waiting and not self._draws and self._owner == os.getpid() and self._in_usual_mode():
            self._write()
        elif now - self._sampled > _OFTEN:
            self._sampled, self._unheard = now, self._count()
        else:
            self._unheard = None

    def _is_free(self) -> bool:
        return (
            bool(self._ears)
            and not self._draws
            and self._ends.get(self._place, True)
            and self._unheard is not None
            and self._unheard == self._count()
            and self._in_usual_mode()
        )

    def _count(self) -> _Unheard | None:
        """What others than Python's streams have done: bytes that were written in C, children that have been there."""
        if not isinstance(self._place, tuple):
            return ()  # nobody else can write there
        try:
            import resource

            with open("/proc/self/io", "rb", buffering=0) as file:
                written = int(file.read(400).split()[3])
        except (ImportError, OSError, ValueError, IndexError):
            return None  # not on this system: then only what the script has just written is known
        return written - self._heard, resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt

    def _in_usual_mode(self) -> bool:
        """Whether a terminal echoes, and takes input by lines: else somebody has the screen to himself."""
        if not self._terminal:
            return True
        try:
            import termios
        except ImportError:
            return True  # a system without such modes
        try:
            _, output, _, local, *_ = termios.tcgetattr(self._stream.fileno())
        except (termios.error, OSError, ValueError):
            return False
        return bool(output & termios.OPOST and local & termios.ECHO and local & termios.ICANON)

    def _write(self) -> None:
        text = "".join(f"{line}\n" for line in self._waiting)
        self._waiting.clear()
        inner = _innermost(self._stream)
        sent: Any = text
        if inner is not self._stream:
            sent = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        try:
            self._heard += self._voice(sent) or 0
            self._sampled, self._unheard = time.monotonic(), self._count()
        except (OSError, ValueError):
            self._draws = True  # nobody reads it any more


def _innermost(stream: TextIO) -> Any:
    """What hands the bytes of a stream to the system, below its buffers; a stream without any is that itself."""
    buffer = getattr(stream, "buffer", stream)
    return getattr(buffer, "raw", buffer)


def _place(stream: TextIO) -> object:
    """Where a stream leads to: two of the same place are seen as one."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return id(_innermost(stream))
    return status.st_dev, status.st_ino, status.st_rdev
