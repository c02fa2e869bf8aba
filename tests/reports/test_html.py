"""The HTML page: what is in it, and, where there is a Chromium, how it behaves."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import gradscope.reports
from gradscope.graph.facts import Finding, Help, Label, Module, Received, Run, Span
from gradscope.reports.folding import fold
from gradscope.reports.html import script_safe
from gradscope.reports.picture import picture
from gradscope.reports.report import Report
from tests.runs import Book

EVIL = "</script><script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\"><!--&amp;"
WEB = Path(gradscope.reports.__file__).parent / "web"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Text between elements."""
        self.text.append(data)


def blocks(count: int, name: str = "w") -> Run:
    """A chain of blocks of two layers each, in modules."""
    book = Book()
    modules = [Module("model", "Net", True)]
    state = book.leaf("x", (2,))
    for block in range(count):
        modules.append(Module(f"model.{block}", "Block", True))
        for part in ("up", "down"):
            module = f"model.{block}.{part}"
            modules.append(Module(module, "Linear", True))
            weight = book.leaf(
                f"{block}.{part}.{name}",
                (2, 2),
                True,
                nn_parameter=True,
                registered="parameter",
                module="model",
                received=Received(3, 3),
                gradient_norms=(1.0 + block, 2.0, 0.5),
            )
            shape = (5, 7) if part == "up" else (5, 5)
            state = book.op("linear", state, weight, module=module, line=4 + len(part), shape=shape)
        state = book.op("relu", state, module=f"model.{block}", line=9)
    book.step(book.op("sum", state, result="loss", shape=(), line=20))
    sources = {"train.py": {6: "        x = self.up(x)", 20: "loss = out.sum()", 30: "SECRET = 1"}}
    return replace(book.run(), modules=tuple(modules), sources=sources)


def page_of(run: Run, *findings: Finding) -> str:
    """The page of a run with these findings."""
    return Report(run, findings).to_html()


def data_of(page: str) -> Any:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def evil() -> Run:
    """A run in which every name is HTML."""
    book = Book()
    w = book.leaf(EVIL, (2,), True, nn_parameter=True, received=Received(1, 1), gradient_norms=(1.0,))
    book.step(book.op("sum", w, result="loss", file=f"/{EVIL}.py", line=1, module=f"net.{EVIL}"))
    sources = {f"/{EVIL}.py": {1: f"loss = w.sum()  # {EVIL}"}}
    return replace(book.run(), sources=sources, script=f"/{EVIL}.py", argv=(EVIL,), failures=(EVIL,))


def test_the_page_needs_nothing_from_outside() -> None:
    """No element of the page loads anything or runs anything but the page's own script."""
    page = page_of(blocks(3))
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in page
    for name in WEB.iterdir():
        assert not re.search(r"fetch\(|XMLHttpRequest|import\(|url\((?!#)|@import|innerHTML|eval\(", name.read_text())


def test_names_are_shown_as_text() -> None:
    """HTML in names of tensors, files, modules and in source lines adds no element to the page."""
    finding = Finding(
        EVIL,
        "error",
        EVIL,
        Span(f"/{EVIL}.py", 1, 1, 1, 5),
        caret=EVIL,
        tensors=(EVIL,),
        labels=(Label(Span(f"/{EVIL}.py", 1), EVIL),),
        facts=(EVIL,),
        help=(Help(EVIL),),
    )
    harmless = Elements(page_of(blocks(1))).found
    found = Elements(page_of(evil(), finding)).found
    assert [tag for tag, _ in found if tag == "script"] == ["script", "script"]
    assert {tag for tag, _ in found} <= {tag for tag, _ in harmless} | {"article", "pre", "ul", "li", "span", "circle"}
    assert any(EVIL in text for text in Elements(page_of(evil(), finding)).text)
    assert EVIL in data_of(page_of(evil(), finding))["texts"]


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "a&b", "\u2028\u2029", "\ud800", '"\\', "é漢😀"])
def test_data_is_safe_in_a_script_and_comes_back(text: str) -> None:
    """Any text can stand in the page's data: it ends no element, can be written, and is read back unchanged."""
    written = script_safe([text])
    assert not set("<>&\u2028\u2029") & set(written)
    written.encode("utf-8")
    assert json.loads(written) == [text]


def test_only_cited_lines_are_in_the_page() -> None:
    """Of the sources, the page holds the lines that its boxes and findings refer to."""
    page = page_of(blocks(2))
    assert data_of(page)["sources"] == {"train.py": {"6": "x = self.up(x)", "20": "loss = out.sum()"}}
    assert "SECRET" not in page


def test_findings_come_first_then_the_table_then_the_graph() -> None:
    """The order of the page, and the severity of each finding in words."""
    span = Span("train.py", 20, 8, 20, 11)
    page = page_of(blocks(1), Finding("a", "error", "first", span), Finding("b", "info", "second", span))
    places = [page.index(text) for text in ("error[a]", "info[b]", "<table>", 'id="canvas"')]
    assert places == sorted(places)
    assert "loss = out.sum()" in page


def test_each_tensor_has_a_row_and_a_chart_of_its_gradients() -> None:
    """The rows are those of the report; norms are drawn step by step, and said in words."""
    page = page_of(blocks(2))
    assert page.count("<tr data-row=") == 6
    assert page.count('<svg class="chart"') == 4
    assert "<title>3 gradients, |grad| from 5.0e-01 to 2.0e+00</title>" in page


def test_a_finding_knows_its_boxes() -> None:
    """The data say where the graph shows a finding: its operations, else its tensors, else its line."""
    run = blocks(2)
    by_operation = Finding("a", "error", "m", None, operations=(run.steps[0].operations[0].id,))
    by_tensor = Finding("b", "error", "m", None, tensors=("1.up.w",))
    by_line = Finding("c", "error", "m", Span("train.py", 20))
    data = data_of(page_of(run, by_operation, by_tensor, by_line))
    titles = [[data["texts"][data["boxes"]["title"][box]] for box in boxes] for boxes in data["findings"]]
    assert titles == [["linear"], ["1.up.w"], ["sum"]]


def test_an_empty_run_has_a_page() -> None:
    """Without operations and tensors the page says so."""
    page = page_of(Run("0", "2"))
    assert "nothing to draw" in data_of(page)["note"]
    assert "No findings" in page


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    """A norm that is not finite is a cross in the chart, one of zero a ring."""
    book = Book()
    w = book.leaf("w", (2,), True, received=Received(4, 4, 1, 1), gradient_norms=(1.0, None, 0.0, 2.0))
    book.step(book.op("sum", w, result="loss"))
    page = page_of(book.run())
    assert 'class="cross"' in page
    assert 'class="zero"' in page
    assert "1 zero, 1 not finite" in page


def test_the_page_is_written_by_its_ending(tmp_path: Path) -> None:
    """`render` to `.html` writes the page."""
    report = Report(blocks(1), ())
    report.render(tmp_path / "graph.html")
    assert (tmp_path / "graph.html").read_text(encoding="utf-8") == report.to_html()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags, timeout=600_000)
        yield browser
        browser.close()


class Shown:
    """A page in the browser; whatever it complains about fails the test."""

    def __init__(self, chromium: Any, page: str, folder: Path, **options: Any) -> None:
        self.said: list[str] = []
        path = folder / "report.html"
        path.write_text(page, encoding="utf-8")
        self.page = chromium.new_page(viewport={"width": 1300, "height": 900}, **options)
        self.page.set_default_timeout(600_000)  # what does not come at all, and not what is slow
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on(
            "request", lambda request: self.said.append(request.url) if "report.html" not in request.url else 0
        )
        self.page.goto(path.as_uri())

    def titles(self) -> list[str]:
        """The titles of the boxes that are seen."""
        return list(self.page.locator("#canvas g.node text.title").all_text_contents())

    def frames(self) -> list[str]:
        """The titles of the open groups."""
        texts = self.page.locator("#canvas text.name").all_text_contents()
        return [re.split("model", text)[0].removeprefix("\N{MINUS SIGN} ") or text for text in texts]

    def click(self, title: str) -> None:
        """Click on the box with this title, wherever it lies."""
        self.page.locator("#canvas g.node", has_text=re.compile(rf"^{re.escape(title)}")).first.dispatch_event("click")

    def close(self) -> None:
        """Nothing was complained about, and nothing lies over anything else."""
        boxes = self.page.evaluate(
            """() => [...document.querySelectorAll("#canvas g.node")].map((node) => {
              const box = node.querySelector(":scope > :not(text)");
              const { left, top, right, bottom } = box.getBoundingClientRect();
              return [left, top, right, bottom];
            })"""
        )
        for place, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[place + 1 :]:
                assert right <= other[0] + 1 or other[2] <= left + 1 or bottom <= other[1] + 1 or other[3] <= top + 1
        self.page.close()
        assert self.said == []


def test_groups_open_and_close_by_click(chromium: Any, tmp_path: Path) -> None:
    """A click on a closed group opens it, one on its frame's title closes it again."""
    shown = Shown(chromium, page_of(blocks(30)), tmp_path)
    assert "30 x Block" in shown.frames()
    shown.page.locator("#canvas .handle", has_text="30 x Block").click()
    assert shown.titles() == ["x", "30 x Block", "sum", "loss"]
    shown.click("30 x Block")
    assert {"relu", "linear"} <= set(shown.titles())
    shown.page.locator("#canvas .handle", has_text="30 x Block").focus()
    shown.page.keyboard.press("Enter")
    assert "30 x Block" in shown.titles()
    shown.close()


def test_a_row_is_taken_apart_and_a_level_is_closed(chromium: Any, tmp_path: Path) -> None:
    """The blocks of a row can be shown one by one, and levels closed and opened."""
    shown = Shown(chromium, page_of(blocks(30)), tmp_path)
    for _ in range(3):
        shown.page.get_by_text("Close a level").click()
    assert shown.titles() == ["x", "model: Net", "sum", "loss"]
    shown.page.get_by_text("Open a level").click()
    assert "30 x Block" in shown.titles()
    shown.page.locator("#canvas g.node", has_text="30 x Block").focus()
    shown.page.keyboard.press("Enter")
    shown.page.locator("#canvas .handle", has_text="30 x Block").click()
    shown.page.get_by_text("Show all 30 one by one").click()
    assert {"0: Block", "29: Block"} <= set(shown.titles())
    shown.page.get_by_text("As at first").click()
    assert "30 x Block" in shown.frames()
    shown.close()


def test_search_finds_and_opens(chromium: Any, tmp_path: Path) -> None:
    """A search lists what matches by name, module or line, and Enter brings the first into sight."""
    shown = Shown(chromium, page_of(blocks(30)), tmp_path)
    shown.page.locator("#canvas .handle", has_text="30 x Block").click()
    shown.page.fill("#search", "model.17.up")
    assert shown.page.locator("#status").inner_text() == "2 found"
    shown.page.keyboard.press("Enter")
    assert shown.page.locator("#canvas .marked").count() == 1
    assert "*.w" in shown.titles()
    shown.page.fill("#search", "train.py:20")
    assert shown.page.locator("#hits li").all_inner_texts() == ["sum line 20"]
    shown.page.fill("#search", "nothing is called so")
    assert shown.page.locator("#status").inner_text() == "0 found"
    shown.close()


def test_a_finding_shows_its_place_and_a_box_its_code(chromium: Any, tmp_path: Path) -> None:
    """The button of a finding marks its boxes; the panel tells line, shape, gradients and their chart."""
    run = blocks(3)
    finding = Finding("detach", "error", "m", None, operations=(run.steps[0].operations[0].id,))
    shown = Shown(chromium, page_of(run, finding), tmp_path)
    shown.page.get_by_text("Show in the graph").click()
    assert shown.page.locator("#canvas .marked").count() == 1
    detail = shown.page.locator("#detail").inner_text()
    assert "train.py:6" in detail
    assert "x = self.up(x)" in detail
    shown.click("2.down.w")
    detail = shown.page.locator("#detail").inner_text()
    assert "2x2" in detail
    assert "|grad| 2.0e+00" in detail
    assert shown.page.locator("#detail .chart").count() == 1
    shown.close()


def test_the_table_sorts_and_filters(chromium: Any, tmp_path: Path) -> None:
    """A click on a column's head sorts by its values, the filter leaves rows that match."""
    shown = Shown(chromium, page_of(blocks(12)), tmp_path)
    names = shown.page.locator("tbody tr:visible td:first-child")
    shown.page.get_by_role("button", name="|grad|", exact=True).click()
    shown.page.get_by_role("button", name="|grad|", exact=True).click()
    assert names.all_inner_texts()[0] == "1.up.w"
    shown.page.fill("#filter", "11.")
    assert sorted(names.all_inner_texts()) == ["11.down.w", "11.up.w"]
    assert shown.page.locator("#counted").inner_text() == "2 of 26 tensors"
    names.first.get_by_role("button").click()
    assert shown.page.locator("#canvas .marked").count() == 1
    shown.close()


def test_names_that_are_html_stay_text_in_the_browser(chromium: Any, tmp_path: Path) -> None:
    """Names made of script and image tags are shown letter by letter and run nothing."""
    finding = Finding("detach", "error", EVIL, Span(f"/{EVIL}.py", 1), tensors=(EVIL,))
    shown = Shown(chromium, page_of(evil(), finding), tmp_path)
    assert "bad" not in shown.page.title().split("'")[0]
    assert shown.page.locator("#canvas g.node", has_text="</script>").count() == 1
    shown.page.fill("#search", "</script><script>")
    shown.page.keyboard.press("Enter")
    assert EVIL in shown.page.locator("#detail").inner_text()
    assert shown.page.title() == f"gradscope: /{EVIL}.py"
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(chromium: Any, tmp_path: Path, scheme: str) -> None:
    """The letters in boxes keep a contrast of at least 4.5 to 1, whatever the scheme."""
    book = Book()
    total = book.op("add", book.leaf("w", (2,), True, nn_parameter=True), book.leaf("c", (2,)))
    total = book.op("add", total, book.leaf("image", (2,), True))
    total = book.op("add", total, book.leaf("mean", (2,), registered="buffer"))
    total = book.op("add", total, book.leaf("frozen", (2,), nn_parameter=True))
    book.step(book.op("sum", total, result="loss", shape=()))
    shown = Shown(chromium, page_of(book.run()), tmp_path, color_scheme=scheme)
    pairs = shown.page.evaluate(
        """() => [...document.querySelectorAll("#canvas g.node")].map((node) => {
             const parts = [node.querySelector(":scope > :not(text)"), node.querySelector("text")];
             return parts.map((part) => getComputedStyle(part).fill);
           })"""
    )
    assert len(pairs) == 11
    for fill, ink in pairs:
        light, dark = sorted(map(_luminance, (fill, ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    shown.close()


def test_a_graph_of_100_000_operations_opens(chromium: Any, tmp_path: Path) -> None:
    """A very long loop is a few boxes, which open part by part, to the single operations."""
    book = Book()
    state = book.leaf("w", (2,), True)
    for _ in range(50_000):
        state = book.op("tanh", book.op("linear", state, line=5), line=6)
    book.step(book.op("sum", state, result="loss"))
    shown = Shown(chromium, page_of(book.run()), tmp_path)
    assert set(shown.titles()) == {"w", "50,000 x linear", "50,000 x tanh", "sum", "loss"}
    shown.click("50,000 x tanh")
    assert 40 < len(shown.titles()) < 400
    shown.page.fill("#search", "train.py:6")
    shown.page.keyboard.press("Enter")
    assert "tanh" in shown.titles()
    assert shown.page.locator("#canvas .marked").count() == 1
    shown.close()


@pytest.mark.parametrize("seed", range(6))
def test_the_page_shows_the_boxes_of_the_picture(chromium: Any, tmp_path: Path, seed: int) -> None:
    """At first, page and picture show the same boxes, whatever the graph; opening and closing keeps them apart."""
    run = scrambled(seed)
    shown = Shown(chromium, page_of(run), tmp_path)
    assert sorted(shown.titles()) == sorted(vertex.title for vertex in fold(picture(run), run).vertices)
    for button in ("Open a level", "Open a level", "Close a level"):
        shown.page.get_by_text(button).click()
        assert not shown.page.locator('path.link[d*="NaN"]').count()
    shown.close()


def scrambled(seed: int) -> Run:
    """Operations on random earlier values, in modules that run into each other, with cuts."""
    dice = random.Random(seed)
    book = Book()
    for index in range(dice.randint(1, 9)):
        book.leaf(f"leaf{index}", (2,), dice.random() < 0.6)
    modules = [
        None,
        "a",
        "a.b",
        "a.b.c",
        *(f"q.{index}" for index in range(5)),
        *(f"q.{index}.z" for index in range(5)),
    ]
    for _ in range(dice.choice([20, 80, 300])):
        last = len(book.values) - 1
        inputs = [dice.randint(max(0, last - 30), last) for _ in range(dice.randint(1, 3))]
        module, cut = dice.choice(modules), dice.random() < 0.05
        book.op(dice.choice(["add", "mul", "cat"]), *inputs, module=module, line=dice.randint(1, 60), cut=cut)
    book.step(len(book.values) - 1)
    return book.run()


def _luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of `rgb(...)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))
