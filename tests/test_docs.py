"""What README and docs show is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.workshop import Workshop

ROOT = Path(__file__).parents[1]
EXTRAS = ("lightning", "transformers", "accelerate", "tensorboard")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("place", "script"), [(0, "forum.py"), (1, "detached.py")])
def test_readme_shows_real_output(place: int, script: str, workshop: Workshop) -> None:
    """The output in the README is what the command prints."""
    workshop.write((ROOT / "examples" / script).read_text(encoding="utf-8"), f"examples/{script}")
    shown = blocks(README, "text")[place]
    assert shown in workshop.gradscope("explain", f"examples/{script}").out


def test_readme_shows_the_forum_script() -> None:
    """The script in the README is the one in examples."""
    assert blocks(README, "python")[0] in (ROOT / "examples" / "forum.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_examples_in_docs_run(page: Path, tmp_path: Path) -> None:
    """Every Python example in docs runs as it stands, and every link to a file leads somewhere."""
    text = page.read_text(encoding="utf-8")
    missing = set()
    for number, block in enumerate(blocks(text, "python")):
        absent = {name for name in EXTRAS if re.search(rf"\b{name}\b", block) and find_spec(name) is None}
        missing |= absent
        if absent:
            continue
        script = tmp_path / f"{page.stem}_{number}.py"
        script.write_text(block, encoding="utf-8")
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        subprocess.run([sys.executable, script], check=True, capture_output=True, cwd=tmp_path, env=offline)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists()
    if missing:
        pytest.skip(f"not installed, so their examples did not run: {', '.join(sorted(missing))}")


def test_links_of_the_readme_lead_somewhere() -> None:
    """Files that the README names exist."""
    for link in [*re.findall(r"\]\(([^)#:]+)\)", README), *re.findall(r'src="([^"]+)"', README)]:
        assert (ROOT / link).exists()
