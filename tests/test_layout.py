"""Which part may know which, read from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradscope

PACKAGE = Path(gradscope.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# shells -> reports -> rules -> graph <- folds <- probes; `errors` and the package itself are everybody's.
ALLOWED = {
    "graph": {"graph"},
    "rules": {"rules", "graph"},
    "reports": {"reports", "rules", "graph"},
    "folds": {"folds", "graph"},
    "probes": {"probes", "folds", "graph"},
    "shells": {"shells", "reports", "rules", "graph", "probes"},
    "integrations": {"integrations", "reports", "rules", "graph", "probes"},
}
WITHOUT_TORCH = {"graph", "folds", "rules", "reports"}


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, also inside of functions, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def part_of(module: str) -> str | None:
    """The folder of ours that a module lies in."""
    first, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    return folder if first == "gradscope" and (PACKAGE / folder).is_dir() and folder else None


def test_the_parts_are_those_of_the_design() -> None:
    """The package has the folders of the design and no others."""
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ALLOWED)
    assert {file.parent.relative_to(PACKAGE).parts[0] for file in FILES if file.parent != PACKAGE} == set(ALLOWED)


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_point_one_way(part: str) -> None:
    """Each part imports only the parts that it may know, and the facts, rules and reports do without torch."""
    wrong = []
    seen = 0
    for file in sorted((PACKAGE / part).rglob("*.py")):
        for line, module in imported(file):
            seen += 1
            of = part_of(module)
            torch = module.partition(".")[0] in ("torch", "torchviz", "numpy") and part in WITHOUT_TORCH
            if torch or (of is not None and of not in ALLOWED[part]):
                wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {module}")
    assert wrong == []
    assert seen > 5, part


def test_no_rule_knows_another() -> None:
    """A rule imports the facts, what a claim is, the words and the mends; only the list of rules knows them all."""
    shared = {"claim", "words", "mends"}
    makers = {"__init__", "engine", "pages"}
    wrong = []
    for file in sorted((PACKAGE / "rules").rglob("*.py")):
        if file.stem not in makers | shared:
            for line, module in imported(file):
                inside = module.split(".")[2:3] if module.startswith("gradscope.rules") else ["claim"]
                if not shared.issuperset(inside):
                    wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {module}")
    assert wrong == []


def test_shared_modules_know_nothing_of_the_parts_when_imported() -> None:
    """`gradscope` and `gradscope.errors` import no part and no torch at the top level."""
    for file in (PACKAGE / "errors.py", PACKAGE / "__init__.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert name in ("__future__", "typing")


def test_no_file_is_a_drawer() -> None:
    """No module is called for being useful: a reader finds a thing by its name."""
    drawers = {"utils", "util", "base", "common", "helpers", "helper", "misc", "core"}
    assert [file for file in FILES if file.stem in drawers] == []


def test_no_folder_bears_the_name_of_a_public_function() -> None:
    """`gradscope.explain` is a function, and no folder or module hides it."""
    names = {file.stem for file in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert names & set(gradscope.__all__) == set()


def test_the_folders_of_tests_mirror_the_source() -> None:
    """Each test file below a part's folder is named for a module of that part, or for the part."""
    tests = Path(__file__).parent
    strays = []
    for part in ALLOWED:
        for test in (tests / part).rglob("test_*.py"):
            folder = PACKAGE / test.parent.relative_to(tests)
            module = test.stem.removeprefix("test_")
            if module != folder.name and not (folder / f"{module}.py").exists() and not (folder / module).is_dir():
                strays.append(str(test.relative_to(tests)))
    assert strays == []


def test_a_name_of_operations_is_given_once() -> None:
    """A second definition of a set would change what the first is used for."""
    tree = ast.parse((PACKAGE / "graph" / "ops.py").read_text())
    names = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
