"""Pictures written to files through the child process that runs Graphviz."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gradscope.errors import GradscopeError
from gradscope.reports import drawing
from gradscope.reports.drawing import DrawingError, draw
from tests.runs import Book

SMALL = 'digraph { node [fontname="DejaVu Sans"]; a [label="tensor"]; b [label="loss"]; a -> b }'
STARTS = {
    ".png": b"\x89PNG\r\n\x1a\n",
    ".pdf": b"%PDF-",
    ".svg": b"<?xml",
    ".dot": b"digraph",
    ".gv": b"digraph",
}


def letter(text: str, font: str = "DejaVu Sans") -> str:
    """A picture of one word."""
    return f'digraph {{ node [fontname="{font}" shape=plain fontsize=40]; a [label="{text}"] }}'


@pytest.mark.parametrize("ending", sorted(STARTS))
def test_each_ending_gives_its_format(tmp_path: Path, ending: str) -> None:
    """The ending of the path, in either case, chooses what is written."""
    for path in (tmp_path / f"graph{ending}", tmp_path / f"upper{ending.upper()}"):
        draw(SMALL, path)
        assert path.read_bytes().startswith(STARTS[ending])


def test_svg_holds_the_words_as_text(tmp_path: Path) -> None:
    """An SVG keeps the names as text, with a family that any browser has to fall back on."""
    path = tmp_path / "graph.svg"
    draw(
        'digraph { a [label="cte1 \N{GREEK SMALL LETTER ALPHA} <&>" fontname="DejaVu Sans,sans-serif"] }',
        path,
    )
    texts = [e for e in ElementTree.fromstring(path.read_bytes()).iter() if e.tag.endswith("}text")]
    assert [text.text for text in texts] == ["cte1 \N{GREEK SMALL LETTER ALPHA} <&>"]
    assert texts[0].get("font-family", "").endswith("sans-serif")


def test_a_label_that_begins_with_an_empty_line_is_drawn(tmp_path: Path) -> None:
    """An unnamed tensor in torchviz's style, its name's line empty and its shape below, crashes no Graphviz."""
    draw('digraph { a [label="\\n (3)"]; b [label="\n (3)"]; a -> b }', tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(STARTS[".png"])


def test_dot_is_written_as_it_is(tmp_path: Path) -> None:
    """A `.dot` file holds the DOT text itself, even where Graphviz could not read it."""
    draw("digraph { \N{GREEK SMALL LETTER ALPHA} ?", tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8") == "digraph { \N{GREEK SMALL LETTER ALPHA} ?"


def test_letters_are_drawn_without_any_font_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has no fonts, letters come from ours: they differ from each other and from boxes."""
    bare = tmp_path / "bare.conf"
    bare.write_text("<fontconfig></fontconfig>", encoding="utf-8")
    monkeypatch.setenv("FONTCONFIG_FILE", str(bare))
    monkeypatch.setattr(drawing, "_system_fonts", list)
    pictures = set()
    for place, text in enumerate(("H", "N", "\N{GREEK SMALL LETTER ALPHA}", "\N{RIGHTWARDS ARROW}", "\ue000")):
        path = tmp_path / f"{place}.png"
        draw(letter(text), path)
        pictures.add(tuple(_ink(path)))
    assert len(pictures) == 5


def test_another_font_name_is_drawn_with_letters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without fonts, `monospace` of the torchviz style falls back to our letters."""
    monkeypatch.setenv("FONTCONFIG_FILE", str(tmp_path / "missing.conf"))
    monkeypatch.setattr(drawing, "_system_fonts", list)
    draw(letter("H", "monospace"), tmp_path / "a.png")
    draw(letter("H"), tmp_path / "b.png")
    assert _ink(tmp_path / "a.png") == _ink(tmp_path / "b.png")


def test_the_child_neither_imports_torch_nor_runs_the_users_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the user's directory named like libraries, or like its main, are not run by the child."""
    for name in ("torch", "pygraphviz", "math", "__main__"):
        (tmp_path / f"{name}.py").write_text("open('touched', 'w')\nraise SystemExit(3)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    draw(SMALL, tmp_path / "graph.svg")
    assert not (tmp_path / "touched").exists()


def test_time_limit_is_kept(tmp_path: Path) -> None:
    """A layout that takes too long ends in one clear line, and what stood at the path stays."""
    path = tmp_path / "graph.svg"
    path.write_text("before", encoding="utf-8")
    thick = "".join(f"n{a} -> n{b};" for a in range(150) for b in range(a))
    before = os.times().children_user
    with pytest.raises(DrawingError, match="takes more than 1 seconds") as caught:
        draw(f"digraph {{ {thick} }}", path, seconds=1)
    assert os.times().children_user - before < 3
    assert "\n" not in str(caught.value)
    assert ".dot" in str(caught.value)
    assert path.read_text(encoding="utf-8") == "before"
    assert os.listdir(tmp_path) == ["graph.svg"]


def test_a_layout_that_is_late_is_tried_in_a_cheaper_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first layout runs out of its time, the second one still gives a picture."""
    _, second = drawing._ATTEMPTS
    monkeypatch.setattr(drawing, "_ATTEMPTS", ((0.0001, "dot", ()), second))
    draw(SMALL, tmp_path / "graph.svg")
    assert b"tensor" in (tmp_path / "graph.svg").read_bytes()


@pytest.mark.parametrize("name", ["graph", "graph.jpeg", "graph.bmp"])
def test_unknown_ending_is_one_clear_line(tmp_path: Path, name: str) -> None:
    """An ending that is none of ours names those that are, before anything is written."""
    with pytest.raises(DrawingError, match=r"must end in \.svg, \.png, \.pdf, \.dot, \.gv or \.html$") as caught:
        draw(SMALL, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_missing_directory_is_one_clear_line(tmp_path: Path) -> None:
    """A path into a directory that does not exist says so."""
    with pytest.raises(DrawingError, match=r"there is no directory .*; make it first"):
        draw(SMALL, tmp_path / "missing" / "graph.png")


def test_directory_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    """A directory that has the picture's name is left alone."""
    (tmp_path / "graph.png").mkdir()
    with pytest.raises(DrawingError, match="it is a directory"):
        draw(SMALL, tmp_path / "graph.png")
    assert (tmp_path / "graph.png").is_dir()


def test_read_only_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be written is not replaced either."""
    path = tmp_path / "graph.dot"
    path.write_text("before", encoding="utf-8")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(DrawingError, match="read-only"):
        draw(SMALL, path)
    assert path.read_text(encoding="utf-8") == "before"


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails at the last moment, the old picture stays and no other file is left."""
    path = tmp_path / "graph.dot"
    path.write_text("before", encoding="utf-8")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DrawingError, match="No space left on device"):
        draw(SMALL, path)
    assert path.read_text(encoding="utf-8") == "before"
    assert os.listdir(tmp_path) == ["graph.dot"]


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")
def test_links_and_modes_are_kept(tmp_path: Path) -> None:
    """A link keeps pointing at its file, and the file keeps its mode."""
    real = tmp_path / "real.dot"
    real.write_text("before", encoding="utf-8")
    real.chmod(0o640)
    link = tmp_path / "link.dot"
    link.symlink_to(real)
    draw(SMALL, link)
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8") == SMALL
    assert real.stat().st_mode & 0o777 == 0o640


def test_text_that_is_no_dot_is_one_clear_line(tmp_path: Path) -> None:
    """What Graphviz cannot read ends in one line, not in a traceback of the child."""
    with pytest.raises(DrawingError, match="Graphviz failed") as caught:
        draw("digraph { ?", tmp_path / "graph.svg")
    assert "\n" not in str(caught.value)


def test_missing_pygraphviz_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pygraphviz, the error names it and the way around it."""
    (tmp_path / "pygraphviz.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pygraphviz'\")", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DrawingError, match="install pygraphviz"):
        draw(SMALL, tmp_path / "graph.svg")


def test_drawing_errors_are_errors_of_gradscope() -> None:
    """A `DrawingError` ends the command line as other misuse does."""
    assert issubclass(DrawingError, GradscopeError)
    assert DrawingError.exit_code == 2


def test_a_huge_png_stays_of_bounded_size(tmp_path: Path) -> None:
    """A very large graph gives a PNG of fewer dots an inch, not one of gigabytes."""
    path = tmp_path / "graph.png"
    wide = "".join(f"a{n} -> b{n};" for n in range(40))
    draw(f"digraph {{ graph [nodesep=4 ranksep=20]; {wide} }}", path)
    width, height = _size(path)
    assert width * height < 26e6


def test_what_is_laid_out_too_slowly_is_folded_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When even the cheap layout is late, the picture is folded to fewer boxes, and says so."""
    book = Book()
    value = book.leaf("w", (2,), True)
    for part in range(50):
        value = book.op("add", value, module=f"model.{part}", line=part, shape=(part,))
        value = book.op("mul", value, module=f"model.{part}", line=part, shape=(part, 2))
    book.step(book.op("sum", value, result="loss"))
    tried: list[str] = []
    original = drawing.draw

    def late_at_first(dot: str, path: Path, seconds: float = 20.0) -> None:
        tried.append(dot)
        if len(tried) == 1:
            raise drawing.TooSlow("late")
        original(dot, path, seconds)

    monkeypatch.setattr(drawing, "draw", late_at_first)
    drawing.draw_run(book.run(), tmp_path / "graph.dot", depth=3)
    assert tried[0].count(">add<") == 50
    assert ">add<" not in tried[1]
    assert "boxes folded into" in (tmp_path / "graph.dot").read_text()


def test_the_font_is_small_and_its_licence_is_beside_it() -> None:
    """The package carries one font of less than 120 kB, with its licence."""
    folder = Path(drawing.__file__).parent / "fonts"
    assert sum(font.stat().st_size for font in folder.glob("*.ttf")) < 120_000
    assert "Bitstream" in (folder / "LICENSE_DEJAVU").read_text(encoding="utf-8")


def _size(path: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


def _ink(path: Path) -> list[bytes]:
    """The rows of a PNG, without the margin that depends on how wide its letters are."""
    data, place, pixels = path.read_bytes(), 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            pixels += data[place + 8 : place + 8 + length]
        place += 12 + length
    raw = zlib.decompress(pixels)
    row = len(raw) // _size(path)[1]
    return [raw[start : start + row] for start in range(0, len(raw), row)]
