"""Which files are the user's, and which are those of libraries."""

from __future__ import annotations

import os
import site
import sysconfig
from pathlib import Path

import pytest
import torch

from gradscope.probes.forward.callsites import LIBRARY, OPTIMIZER, USER, CallSites


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("train.py", USER),
        ("packages/site.py", USER),
        ("env/lib/python3.11/site-packages/lightning/loops.py", LIBRARY),
        ("lib/python3/dist-packages/numpy/core.py", LIBRARY),
    ],
)
def test_installed_packages_are_libraries_wherever_they_lie(file: str, kind: int, tmp_path: Path) -> None:
    """Also those of other environments than that of the interpreter."""
    assert CallSites(str(tmp_path)).kind(str(tmp_path.joinpath(*file.split("/")))) == kind


def test_torch_is_a_library_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was built among its sources; what lies beside it is the user's."""
    paths = dict.fromkeys(sysconfig.get_paths(), str(tmp_path / "env"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    monkeypatch.setattr(site, "getsitepackages", list)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "pytorch" / "torch" / "__init__.py"))
    sites = CallSites(str(tmp_path))
    assert sites.kind(str(tmp_path / "pytorch" / "torch" / "nn" / "functional.py")) == LIBRARY
    assert sites.kind(str(tmp_path / "pytorch" / "train.py")) == USER
    assert CallSites().kind(os.path.join(os.path.dirname(torch.optim.__file__), "sgd.py")) == OPTIMIZER
