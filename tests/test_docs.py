"""What README and docs show is what happens: every snippet runs, every output is real, and the site builds."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gradscope.rules import RULES
from tests.waiting import PATIENT
from tests.workshop import Workshop

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A block is left out where the line above it is this comment, with the reason.
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
# Commands that are left out wherever they stand.
LEFT_OUT = {
    "make": "makes an environment, from the network",
    "pip": "installs from the network",
    "python3": "makes an environment, from the network",
    "pytest": "a test run of its own",
    "torchrun": "starts ranks, which listen on ports",
}
# What the README's snippets speak of without making it.
GIVEN = """
import torch

model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = model(torch.ones(2, 3)).square().mean()


def training_step():
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().mean().backward()
    optimizer.step()


def train_one_epoch():
    for _ in range(3):
        training_step()


"""


class Snippet(NamedTuple):
    """A block that runs, or a command within a sentence, with the outputs that are shown for it."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None
    outputs: list[str]


def snippets(page: Path) -> list[Snippet]:
    """All snippets of a page, in their order."""
    found: list[Snippet] = []
    sentence: Snippet | None = None
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    position = 0
    while position < len(lines):
        fence = re.match(r"```(.*)$", lines[position])
        if fence is None:
            for command in re.findall(r"`(gradscope [^`]+)`", lines[position]):
                sentence = Snippet(page, position + 1, "sh", command, None, [])
            position += 1
            continue
        end = next(at for at in range(position + 1, len(lines)) if lines[at] == "```\n")
        text = "".join(lines[position + 1 : end])
        excuse = NOT_RUN.match(lines[position - 1])
        if fence[1] == "text":
            if sentence is not None:
                found.append(sentence)
                sentence = None
            if excuse is None:
                found[-1].outputs.append(text)
        elif fence[1] in ("python", "sh") or text.startswith("%"):
            found.append(Snippet(page, position + 1, fence[1], text, excuse[1] if excuse else None, []))
            sentence = None
        position = end + 1
    return found


ALL = [snippet for page in PAGES for snippet in snippets(page)]


def those(language: str) -> pytest.MarkDecorator:
    """Run the test with each snippet of a language."""
    chosen = [snippet for snippet in ALL if snippet.language == language]
    return pytest.mark.parametrize("snippet", chosen, ids=lambda snippet: f"{snippet.page.stem}-{snippet.line}")


@pytest.fixture
def folder(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as readers have it: the examples, a script and a package of their own."""
    shutil.copytree(ROOT / "examples", workshop.folder / "examples")
    forum = (ROOT / "examples" / "forum.py").read_text(encoding="utf-8")
    for name in ("train.py", "package/train.py", "package/__init__.py"):
        workshop.write("" if name.endswith("__init__.py") else forum, name)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return workshop.folder


@those("python")
@pytest.mark.filterwarnings("default")  # a snippet may warn, as it may for its readers
def test_python_runs(snippet: Snippet, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python snippet runs as it stands and prints what is shown below it; those of the README have a model."""
    if snippet.reason is not None:
        pytest.skip(snippet.reason)
    for module in re.findall(r"^(?:import|from) ([\w.]+)", snippet.text, flags=re.MULTILINE):
        pytest.importorskip(module)
    has_tests = "\ndef test_" in snippet.text
    printed = run_by_pytest(folder, snippet) if has_tests else run_as_script(folder, snippet, capsys)
    for output in snippet.outputs:
        assert output in printed


def run_as_script(folder: Path, snippet: Snippet, capsys: pytest.CaptureFixture[str]) -> str:
    """What a snippet prints as a script."""
    script = folder / "snippet.py"
    script.write_text((GIVEN if snippet.page.name == "README.md" else "") + snippet.text, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    return capsys.readouterr().out


def run_by_pytest(folder: Path, snippet: Snippet) -> str:
    """What pytest prints of a snippet with a test, which fails where a failure is shown."""
    (folder / "test_training.py").write_text(snippet.text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_training.py"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ("1 failed" if snippet.outputs else "1 passed") in ended.stdout, ended.stdout + ended.stderr
    return ended.stdout


@those("sh")
def test_commands_run(snippet: Snippet, folder: Path, workshop: Workshop) -> None:
    """Every command runs, none is misuse, and the last one prints what is shown below it."""
    if snippet.reason is not None:
        pytest.skip(snippet.reason)
    printed, ran = "", 0
    for line in snippet.text.splitlines():
        command, *args = shlex.split(line, comments=True)
        if command in LEFT_OUT:
            continue
        assert command == "gradscope", f"{snippet.page.name}: run {command!r}, or put `<!-- not run: why -->` above"
        ended = workshop.gradscope(*args)
        assert ended.status in (0, 1), ended.err
        printed, ran = ended.out, ran + 1
    if not ran:
        pytest.skip("all of it " + LEFT_OUT[snippet.text.split()[0]])
    for output in snippet.outputs:
        assert output in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_cells_run(page: Path, folder: Path) -> None:
    """The cells of a page run in a notebook, one after the other, and those with `%%gradscope` show a report."""
    cells = [snippet.text for snippet in ALL if snippet.page == page and not snippet.language]
    if not cells:
        return
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[dev]'")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[dev]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[dev]'")
    given = GIVEN.replace("training_step()", "training_step(batch=None)") + "loader = range(3)\n"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (given, *cells)])
    nbclient.NotebookClient(book, **PATIENT, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in book.cells:
        if cell.source.startswith("%%gradscope"):
            assert any("gradscope: Cell In[" in str(output.get("data")) for output in cell.outputs)


def test_every_page_with_snippets_is_read() -> None:
    """The pages are found and taken apart: the README shows two outputs, the tutorial three."""
    outputs = {page.name: sum(len(found.outputs) for found in ALL if found.page == page) for page in PAGES}
    assert outputs["README.md"] == 2
    assert outputs["tutorial.md"] == 3


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_forum_script_is_shown_as_it_is(page: str) -> None:
    """The script on the page is the one in examples."""
    shown = next(found.text for found in snippets(ROOT / page) if found.language == "python")
    assert shown in (ROOT / "examples" / "forum.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Files that a page names exist; the pages of the rules are those of the rules that there are."""
    text = page.read_text(encoding="utf-8")
    rules = {f"rules/{rule.name}.md" for rule in RULES} | {"rules/index.md"}
    for link in [*re.findall(r"\]\(([^)#:]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        assert (page.parent / link).exists() or link in rules, link


def test_the_site_builds(tmp_path: Path) -> None:
    """The site builds without a warning, links included, and has a page for each rule."""
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[docs]'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "rules"))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", tmp_path / "docs", tmp_path / "site"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    assert (tmp_path / "site" / "_images" / "forum.png").exists()
    for rule in RULES:
        page = (tmp_path / "site" / "rules" / f"{rule.name}.html").read_text(encoding="utf-8")
        assert f"allow[{rule.name}]" in page
