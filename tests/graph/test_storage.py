"""Runs kept as JSON."""

from __future__ import annotations

import dataclasses
import gzip
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from gradscope.graph import storage
from gradscope.graph.facts import Run
from gradscope.graph.storage import RunUnreadable, decode, encode, load

_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    str: st.text(max_size=8),
    type(None): st.none(),
}


@cache
def facts(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type of the facts, whatever its fields are."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin is typing.Annotated:
        assert kind.__metadata__ == (Meta(ge=0),)
        return facts(arguments[0]).map(abs)
    struct = kind if origin is None else origin  # events are generic in what tells their place
    is_struct = isinstance(struct, type) and issubclass(struct, msgspec.Struct)
    if is_struct or dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(struct, include_extras=True)
        names = struct.__struct_fields__ if is_struct else [field.name for field in dataclasses.fields(kind)]
        given = {name: arguments[0] if isinstance(hints[name], typing.TypeVar) else hints[name] for name in names}
        return st.builds(struct, **{name: facts(hint) for name, hint in given.items()})
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(facts, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(facts(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(facts, arguments))
    if origin is Mapping:
        return st.dictionaries(facts(arguments[0]), facts(arguments[1]), max_size=2)
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):  # generic over its place
        hints = typing.get_type_hints(origin, include_extras=True)
        types_of = {name: hints[name] for name in origin.__struct_fields__}
        return st.builds(
            origin,
            **{n: facts(arguments[0] if isinstance(hint, typing.TypeVar) else hint) for n, hint in types_of.items()},
        )
    raise AssertionError(f"no strategy for {kind}")


@settings(max_examples=60)
@given(facts(Run))
def test_any_run_comes_back_as_it_was(run: Run) -> None:
    """Run -> JSON -> Run gives an equal run, whatever its facts."""
    assert decode(encode(run)) == run


def test_a_run_is_read_from_a_file(tmp_path: Path) -> None:
    """`load` reads what `encode` wrote."""
    run = Run("0.1", "2.13", "train.py", ("--lr", "0.1"), sources={"train.py": {3: "x = 1"}})
    (tmp_path / "run.json").write_bytes(encode(run))
    assert load(tmp_path / "run.json") == run


def test_the_schema_is_written_and_checked() -> None:
    """A kept run says its schema; one of another schema is refused, with both names."""
    data = gzip.decompress(encode(Run("0.1", "2.13")))
    assert b'"schema":"gradscope.run/1"' in data
    with pytest.raises(RunUnreadable, match=r"'gradscope.run/9' and this gradscope reads 'gradscope.run/1'"):
        decode(data.replace(b"gradscope.run/1", b"gradscope.run/9"))


@settings(max_examples=200)
@given(st.data())
def test_damage_never_gives_anything_but_an_answer(data: st.DataObject) -> None:
    """However bytes of a kept run are changed, it is read or refused in one line."""
    kept = encode(Run("0.1", "2.13", sources={"a.py": {1: "x"}}))
    whole = bytearray(data.draw(st.sampled_from([kept, gzip.decompress(kept)])))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[place] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(whole))
    except RunUnreadable as error:
        assert "\n" not in str(error)  # noqa: PT017 - either answer is right
    else:
        assert isinstance(found, Run)


def test_equal_runs_give_equal_files() -> None:
    """A kept run is compressed, and neither the time nor a name is in it."""
    run = Run("0.1", "2.13", sources={"a.py": dict.fromkeys(range(1_000), "x = 1")})
    data = encode(run)
    assert data == encode(run)
    assert data[:8] == b"\x1f\x8b\x08\x00" + bytes(4)
    assert len(data) < len(gzip.decompress(data)) / 5


def test_plain_json_is_read_as_well(tmp_path: Path) -> None:
    """A run that an earlier version kept, or that somebody unpacked, is the same run."""
    run = Run("0.1", "2.13", sources={"train.py": {3: "x = 1"}})
    (tmp_path / "plain.json").write_bytes(gzip.decompress(encode(run)))
    assert load(tmp_path / "plain.json") == run


def test_what_is_compressed_and_no_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file cut short, something else that is compressed, something after the run, and what unpacks without end."""
    whole = encode(Run("0.1", "2.13", sources={"a.py": {1: "x"}}))
    large = gzip.compress(b'{"schema": "gradscope.run/1"' + b" " * (1 << 20), mtime=0)
    monkeypatch.setattr(storage, "_LARGEST", 1 << 18)
    for data, said in (
        (whole[:-1], "is cut short"),
        (whole[:12], "is cut short"),
        (whole[:3], "is cut short"),
        (whole + b"x", "is damaged: something follows"),
        (whole[:40] + b"\xff\xff\xff" + whole[43:], "is "),
        (gzip.compress(b"hello"), "is not a kept run"),
        (gzip.compress(bytes(1 << 20)), "is not a kept run"),
        (gzip.compress(b""), "is cut short or not JSON"),
        (large, "is no kept run: unpacked it has more than"),
    ):
        (tmp_path / "bad.json").write_bytes(data)
        with pytest.raises(RunUnreadable, match="bad.json " + said) as refused:
            load(tmp_path / "bad.json")
        assert "\n" not in str(refused.value)
