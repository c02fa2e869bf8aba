"""A picture file from DOT text, laid out by Graphviz in a child process with a limit on the processor's time."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.sax.saxutils import escape

from gradscope.errors import GradscopeError
from gradscope.graph.facts import Finding, Run
from gradscope.reports.dot import Style, to_dot
from gradscope.reports.escaping import shown
from gradscope.reports.folding import Wish

_TEXT = (".dot", ".gv")
_PICTURES = (".svg", ".png", ".pdf")
_PAGES = (".html",)
_HERE = Path(__file__).resolve().parent

# The careful layout first; then, with what is left of the time, one that gives up on beauty.
_ATTEMPTS: tuple[tuple[float, str, tuple[str, ...]], ...] = (
    (0.5, "dot", ()),
    (0.5, "dot", ("splines=line", "nslimit=0.5", "nslimit1=0.5", "mclimit=0.1", "searchsize=5")),
)


class DrawingError(GradscopeError):
    """A picture could not be drawn or written; its message is one line and says what to do."""


class TooSlow(DrawingError):
    """The layout took more than its time."""


def draw_run(
    run: Run,
    path: Path,
    findings: Sequence[Finding] = (),
    style: Style = "gradscope",
    *,
    depth: int | None = None,
    opened: Sequence[str] = (),
    seconds: float = 20.0,
) -> None:
    """Draw a run, folded further where its layout takes too long. Raises `DrawingError`."""
    check_drawable(path)
    wish = Wish(depth, (opened,) if isinstance(opened, str) else tuple(opened))
    for limit, share in ((300, 0.6), (60, 0.4)):
        try:
            draw(to_dot(run, style, findings, wish, limit), path, seconds * share)
        except TooSlow:
            if style == "torchviz" or limit == 60:
                raise
        else:
            return


def write_page(page: str, path: Path) -> None:
    """Write an HTML page, whole or not at all. Raises `DrawingError`."""
    check_drawable(path)
    with _replacing(path) as beside:
        beside.write_text(page, encoding="utf-8", newline="\n")


def draw(dot: str, path: Path, seconds: float = 20.0) -> None:
    """Write DOT text as `.dot`, `.gv`, `.svg`, `.png` or `.pdf`, by the ending of `path`.

    Graphviz gets at most `seconds` of the processor. What stood at `path` before is replaced only by a whole picture.
    """
    path = Path(path)
    check_drawable(path)
    with _replacing(path) as beside:
        if path.suffix.lower() in _TEXT:
            beside.write_text(dot, encoding="utf-8", newline="\n")
        else:
            beside.write_bytes(_laid_out(dot, path, seconds))


def check_drawable(path: Path) -> None:
    """Raise `DrawingError` where no picture could be written to `path`, before any work is done."""
    if path.suffix.lower() not in _TEXT + _PICTURES + _PAGES:
        *others, last = _PICTURES + _TEXT + _PAGES
        endings = f"{', '.join(others)} or {last}"
        raise DrawingError(f"cannot draw {shown(str(path))}: the name must end in {endings}")
    reason = None
    if path.is_dir():
        reason = "it is a directory; name a file in it"
    elif path.exists() and not path.is_file():
        reason = "it is not a regular file; choose another name"
    elif not path.parent.is_dir():
        reason = f"there is no directory {shown(str(path.parent))}; make it first"
    elif path.exists() and not os.access(path, os.W_OK):
        reason = "the file is read-only; choose another name"
    if reason:
        raise DrawingError(f"cannot write {shown(str(path))}: {reason}")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends well, and is gone otherwise."""
    # A link keeps pointing where it points: what it names is replaced.
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".gradscope-{secrets.token_hex(6)}{path.suffix}")
    try:
        # Made before the layout, so that a place that cannot be written costs no waiting.
        beside.open("xb").close()
        yield beside
        if target.exists():
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DrawingError(f"cannot write {shown(str(path))}: {reason}; choose another place") from error
    finally:
        with suppress(OSError):
            beside.unlink()


def _laid_out(dot: str, path: Path, seconds: float) -> bytes:
    form = path.suffix.lower()[1:]
    with tempfile.TemporaryDirectory(prefix="gradscope-", ignore_cleanup_errors=True) as folder:
        target = Path(folder, f"picture.{form}")
        environment = {**os.environ, "FONTCONFIG_FILE": str(_font_settings(Path(folder)))}
        for share, engine, settings in _ATTEMPTS:
            command = [engine, form, str(target), *settings]
            if _finished(command, dot, environment, share * seconds, path):
                drawn = target.read_bytes()
                return _with_dark_colours(drawn) if form == "svg" else drawn
    raise TooSlow(
        f"cannot draw {shown(str(path))}: its layout takes more than {seconds:g} seconds; "
        "write a .dot file instead and lay it out with Graphviz"
    )


def _with_dark_colours(svg: bytes) -> bytes:
    """The SVG with other colours for readers who prefer dark pages; boxes are told apart by their class."""
    head, tag, rest = svg.partition(b'<g id="graph0"')
    return head + b"<style>" + (_HERE / "dark.css").read_bytes() + b"</style>\n" + tag + rest if tag else svg


def _finished(command: list[str], dot: str, environment: dict[str, str], seconds: float, path: Path) -> bool:
    """Whether the child drew the picture in time."""
    if not sys.executable:
        raise DrawingError(f"cannot draw {shown(str(path))}: no Python to start; write a .dot file instead")
    # -P keeps files of the user's directory from being imported in place of libraries.
    line = [sys.executable, "-P", str(_HERE / "layout.py"), str(seconds), *command]
    limits_itself = hasattr(signal, "setitimer")
    try:
        done = subprocess.run(
            line,
            check=False,
            input=dot.encode("utf-8"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=None if limits_itself else seconds,
        )
    except subprocess.TimeoutExpired:
        return False
    if limits_itself and done.returncode == -signal.SIGPROF:
        return False
    if done.returncode == 0:
        return True
    said = done.stderr.decode("utf-8", "replace")
    if "No module named 'pygraphviz'" in said:
        reason = "pygraphviz is missing; install pygraphviz 2 or newer, or write a .dot file instead"
    else:
        # Fontconfig has something to say about the settings of many machines, whatever the trouble is.
        lines = [line for line in said.splitlines() if line.strip() and not line.startswith("Fontconfig")]
        last = lines[-1:] or [f"it ended with code {done.returncode}"]
        reason = f"Graphviz failed ({last[0].strip()}); write a .dot file instead"
    raise DrawingError(f"cannot draw {shown(str(path))}: {reason}")


def _font_settings(folder: Path) -> Path:
    """A Fontconfig file that knows our own font before those of the machine."""
    system = os.environ.get("FONTCONFIG_FILE") or "/etc/fonts/fonts.conf"
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">',
        "<fontconfig>",
        *(f"<dir>{escape(str(place))}</dir>" for place in (_HERE / "fonts", *_system_fonts())),
        f"<cachedir>{escape(str(folder / 'cache'))}</cachedir>",
        f'<include ignore_missing="yes">{escape(system)}</include>',
        "</fontconfig>",
    ]
    settings = folder / "fonts.conf"
    settings.write_text("\n".join(lines), encoding="utf-8")
    return settings


def _system_fonts() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return [Path("WINDOWSFONTDIR")]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".fonts",
        home / ".local/share/fonts",
    ]
