"""Files that a mend changes."""

from __future__ import annotations

import codecs
import site
from pathlib import Path

import pytest

from gradscope.graph.facts import Edit, Span
from gradscope.shells.trials.files import Source, Unmendable, check_own, mended, read, write

BOM = codecs.BOM_UTF8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a\nb",
        b"a\r\nb\r\n",
        b"a\rb\r",
        b"a\nb\r\nc",
        BOM + b"a = '\xc3\xbc'\n",
        b"# coding: latin-1\na = '\xfc'\n",
        b"\n\n\n",
        b"a\x0cb\x0b\n\xc2\x85c\n",
    ],
)
def test_a_file_is_written_as_it_was_read(content: bytes) -> None:
    """Encoding, mark, ends of lines and a missing one at the end are kept."""
    assert Source.of(content).content == content


def test_an_edit_changes_its_lines_alone() -> None:
    """Lines beside it keep their ends, and new ones have that of the file."""
    source = Source.of(BOM + b"a\r\n\tb\r\nc")
    changed = mended({"f.py": source, "g.py": source}, [Edit(Span("f.py", 2, 2, 2, 3), "x\n\ty")])
    assert changed["f.py"].content == BOM + b"a\r\n\tx\r\n\ty\r\nc"
    assert changed["g.py"] == source
    last = mended({"f.py": source}, [Edit(Span("f.py", 3, 2, 3, 2), "\nd")])
    assert last["f.py"].content == BOM + b"a\r\n\tb\r\nc\r\nd"
    less = mended({"f.py": source}, [Edit(Span("f.py", 2, 1, 3, 1), "")])
    assert less["f.py"].content == BOM + b"a\r\nc"


def test_all_files_are_written_or_none(tmp_path: Path) -> None:
    """A second file that cannot be written leaves the first as it was; modes are kept."""
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_bytes(b"x = 1\n")
    (tmp_path / "a.py").chmod(0o755)
    seen = {name: read(name, tmp_path) for name in ("a.py", "b.py")}
    new = {name: Source.of(b"x = 2\n") for name in seen}
    write(new, seen, tmp_path)
    assert {(tmp_path / name).read_bytes() for name in seen} == {b"x = 2\n"}
    assert (tmp_path / "a.py").stat().st_mode & 0o777 == 0o755
    (tmp_path / "b.py").write_bytes(b"x = 3\n")
    with pytest.raises(Unmendable, match=r"b.py has changed since it ran.*nothing was written"):
        write({"a.py": Source.of(b"x = 9\n"), "b.py": Source.of(b"x = 9\n")}, new, tmp_path)
    assert (tmp_path / "a.py").read_bytes() == b"x = 2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "b.py"]


def test_a_file_that_fails_puts_the_others_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk fails at the second file, the first is as it was."""
    from gradscope.shells.commands.streams import Unwritable
    from gradscope.shells.trials import files

    seen = {name: Source.of(b"x = 1\n") for name in ("a.py", "b.py")}
    for name, source in seen.items():
        (tmp_path / name).write_bytes(source.content)
    real = files.replace_file

    def full(path: Path, data: bytes) -> None:
        if path.name == "b.py":
            raise Unwritable("cannot write b.py: no space left on device")
        real(path, data)

    monkeypatch.setattr(files, "replace_file", full)
    with pytest.raises(Unmendable, match="no space left on device; nothing was changed"):
        write({name: Source.of(b"x = 2\n") for name in seen}, seen, tmp_path)
    assert {(tmp_path / name).read_bytes() for name in seen} == {b"x = 1\n"}


def test_installed_packages_are_not_changed(tmp_path: Path) -> None:
    """What pip or Python has installed is not the user's."""
    check_own("a.py", tmp_path)
    for path in (Path(site.getsitepackages()[0], "x.py"), Path(codecs.__file__)):
        with pytest.raises(Unmendable, match="belongs to an installed package"):
            check_own(str(path), tmp_path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A file that is gone, or is not in its encoding, is one line."""
    with pytest.raises(Unmendable, match=r"cannot read gone.py: No such file"):
        read("gone.py", tmp_path)
    (tmp_path / "bad.py").write_bytes(b"\xff\n")
    with pytest.raises(Unmendable, match=r"bad.py: it is not in the encoding"):
        read("bad.py", tmp_path)
