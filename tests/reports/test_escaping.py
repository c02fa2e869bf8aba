"""What is the user's writes nothing but itself: hostile names in every report, read by parsers and a terminal."""

from __future__ import annotations

import inspect
import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from markdown_it import MarkdownIt

from gradscope.graph.facts import Run
from gradscope.graph.storage import decode, encode
from gradscope.probes.program.scripts import observe_program, program_of_script
from gradscope.reports.difference import difference, difference_text
from gradscope.reports.document import Document
from gradscope.reports.dot import to_dot
from gradscope.reports.escaping import code_span, prose, sarif_message, shown, spelled
from gradscope.reports.merging import Others, rank_report, read_rank
from gradscope.reports.report import Report
from gradscope.reports.text import finding_text
from gradscope.shells.commands.destinations import FORMATS, written
from gradscope.shells.lines import Lines
from gradscope.shells.live import Live
from tests.hostile import TEXTS, Terminal, findings_of, run_of
from tests.workshop import Workshop

OURS = {(31, 1), (33, 1), (36, 1), (0,)}
MARKUP = ("html", "notebook's page", "json", "sarif")  # long, and of one line each
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def hostile(text: str, run: Run | None = None) -> Report:
    """A report in which every text is this one, on a run in two processes."""
    report = Report(run or run_of(text), findings_of(text), (text,))
    other = read_rank(rank_report(1, report.document, (), report.run.sources))
    return report.with_ranks(Others(3, (other,)))


def everything(report: Report) -> dict[str, str]:
    """All that is written of a report, by what writes it."""
    found = {format_: written(report, format_, every_row=True) for format_ in FORMATS}
    found |= {f"text with {option}": report.to_text(**{option: True}) for option in ("colour", "unicode", "every_row")}
    found["one finding"] = "\n".join(finding_text(finding, report.run.sources) for finding in report.findings)
    nothing = Report(Run("0", "2"), ()).document
    found["diff"] = difference_text(difference(nothing, report.document), report.run.script or "", "after.json")
    found["undone diff"] = difference_text(difference(report.document, nothing), "before.json", report.run.script or "")
    found["picture"] = to_dot(report.run, findings=report.findings)
    found["torchviz"] = to_dot(report.run, "torchviz")
    for name, form in (("notebook", "text/plain"), ("notebook's page", "text/html")):
        found[name] = report._repr_mimebundle_()[form]
    return found


@pytest.fixture(scope="module", params=TEXTS)
def told(request: pytest.FixtureRequest) -> tuple[str, Report, dict[str, str]]:
    """A hostile text, the report full of it, and all that is written of the report."""
    text = TEXTS[request.param]
    report = hostile(text)
    return text, report, everything(report)


def test_every_way_out_of_a_report_is_tried() -> None:
    """A new method that writes a report is to be tried here too."""
    methods = {name for name, _ in inspect.getmembers(Report, inspect.isfunction) if name.startswith("to_")}
    assert methods == {*(f"to_{format_}" for format_ in FORMATS), "to_tensorboard"}


def test_a_terminal_is_written_to_and_nothing_else(told: tuple[str, Report, dict[str, str]]) -> None:
    """No bell, title, move of the cursor or mark of direction; colours are ours, where they were asked for."""
    for name, output in told[2].items():
        seen = {letter for letter in output if unicodedata.category(letter) in UNSEEN}
        assert seen <= {"\n", *{"text with colour": "\x1b", "markdown": "\t"}.get(name, "")}, name
        if name in MARKUP:
            continue  # what has no control characters does nothing to a terminal: of these, that is enough
        terminal = Terminal(output)
        assert terminal.deeds() <= ({"tab"} if name == "markdown" else set()), name  # a line that is indented by tabs
        assert terminal.colours == (OURS & terminal.colours if name == "text with colour" else set()), name
        assert terminal.screen.title == terminal.screen.icon_name == ""
    plain, coloured = Terminal(told[2]["text"]), Terminal(told[2]["text with colour"])
    assert coloured.colours
    assert coloured.lines() == plain.lines()
    assert list(plain.styled()) == []


def test_a_report_is_as_many_lines_as_without_names(told: tuple[str, Report, dict[str, str]]) -> None:
    """Names end no line: each of them, in each place, is on one."""
    harmless = everything(hostile("zq"))
    for name in ("diff", "undone diff", "picture", "torchviz", "json", "sarif"):
        assert told[2][name].count("\n") == harmless[name].count("\n"), name


def test_a_log_of_github_is_told_our_commands_only(told: tuple[str, Report, dict[str, str]]) -> None:
    """No line but ours begins with `::`, nor holds the older `##[`; the properties are those that we give."""
    text, report, outputs = told
    for name, output in outputs.items():
        lines = [line for line in output.splitlines() if line.lstrip().startswith("::") or "##[" in line]
        if name != "github":
            # The runner looks for the end of a command's name: of our arrow `:::` there is none.
            lines = [line for line in lines if not re.fullmatch(r"  ::: .*", line)]
        if name not in ("json", "html", "sarif", "notebook's page", "picture", "torchviz"):
            assert len(lines) == (len(report.findings) if name == "github" else 0), name
    for line in outputs["github"].splitlines()[: len(report.findings)]:
        command = re.fullmatch(r"::error ([^:]*)::(.*)", line)
        assert command is not None
        given = dict(pair.split("=", 1) for pair in command[1].split(","))
        assert given.keys() == {"file", "line", "col", "endColumn", "title"}
        file = given["file"]
        for sign, code in ((":", "%3A"), (",", "%2C"), ("\r", "%0D"), ("\n", "%0A"), ("%", "%25")):
            file = file.replace(code, sign)
        assert file == shown(text)


def tokens(output: str) -> list[Any]:
    """All tokens of a page of Markdown, those within lines among them."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    found = parser.parse(output)
    return found + [child for token in found for child in token.children or ()]


def test_markdown_shows_names_as_code(told: tuple[str, Report, dict[str, str]]) -> None:
    """Names make no element, link, image or mention: each stands in code, and our own words hold nothing to find."""
    found = tokens(told[2]["markdown"])
    assert {token.type for token in found} <= {
        *("heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text", "code_inline"),
        *("strong_open", "strong_close", "fence", "html_block"),
    }
    tags = [token.content.strip() for token in found if token.type == "html_block"]
    assert tags == ["<details><summary>1 tensor</summary>", "</details>"]
    for token in found:
        if token.type == "text":
            assert re.fullmatch(r"[A-Za-z0-9 .,;:'\"()/%=+|*>_-]*", token.content)
            assert not re.search(r"zq|fine|://|www\.|GH-\d|:[a-z]+:", token.content)
    assert {token.info for token in found if token.type == "fence"} <= {"text", "diff"}
    code = [token.content for token in found if token.type == "code_inline"]
    assert any("never learns" in one or one == shown(told[0]) for one in code)


def test_the_same_words_are_prose_about_harmless_names() -> None:
    """Backticks of ours are code, and the words around them are none."""
    sentence = "`encoder` never learns: its 4 parameters got no gradient in 20 steps"
    assert prose(sentence, {"x`y"}) == sentence
    assert prose("|grad| of `w` -> 0") == r"\|grad\| of `w` -\> 0"
    assert prose("see `a`b` now") == "`` see `a`b` now ``".replace(" see", "see").replace("now ``", "now``")


@pytest.mark.parametrize("text", [*TEXTS.values(), "`", "``a", " ", "", "\\", "a\\`", "  "])
def test_code_shows_every_letter(text: str) -> None:
    """A text in a code span is read back letter by letter, as it is spelled."""
    (paragraph, *_), (code,) = ([t for t in tokens(f"a {code_span(text)} b") if t.type == kind] for kind in _KINDS)
    assert code.content == (spelled(text) or " ")
    assert len(paragraph.children) == 3


_KINDS = ("inline", "code_inline")


class Tags(HTMLParser):
    """The elements of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.found.append((tag, tuple(name for name, _ in attrs)))


# A paragraph for lines that are broken elsewhere, and the diff of an edit that changes something.
_MAY_BE = (("p", ()), ("p", ("class",)), ("pre", ("class",)))


def test_a_page_has_our_elements_only(told: tuple[str, Report, dict[str, str]]) -> None:
    """The page has the elements of one about harmless names, one by one, but for lines that are broken elsewhere."""
    harmless = everything(hostile("zq"))
    for name in ("html", "notebook's page"):
        found, known = ([tag for tag in Tags(page[name]).found if tag not in _MAY_BE] for page in (told[2], harmless))
        assert found == known


def test_json_and_the_kept_run_hold_the_true_names(told: tuple[str, Report, dict[str, str]]) -> None:
    """What is escaped for readers is true for programs; half a surrogate pair, which UTF-8 cannot say, is spelled."""
    text, report, outputs = told
    true = text.encode("utf-8", "backslashreplace").decode()
    document = msgspec.json.decode(outputs["json"], type=Document)
    assert document.findings[0].tensors == (true,)
    assert document.findings[0].help[0].edits
    assert document.findings[0].help[0].edits[0].text == true
    assert (document.script, document.tensors[0].name, document.findings[0].message) == (true, true, true)
    kept = decode(encode(report.run))
    assert kept.tensors[0].name == kept.sources[true][1] == true
    if true == text:
        assert document == report.document
        assert kept == report.run


def test_sarif_holds_true_places_and_no_links(told: tuple[str, Report, dict[str, str]]) -> None:
    """Files and edits are true; of messages a viewer makes no link."""
    text, _, outputs = told
    result = json.loads(outputs["sarif"])["runs"][0]["results"][0]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(uri) == text.encode("utf-8", "backslashreplace").decode()
    fix = result["fixes"][0]["artifactChanges"][0]["replacements"][0]
    assert fix["insertedContent"]["text"] == text.encode("utf-8", "backslashreplace").decode()
    message = result["message"]["text"]
    assert not re.search(r"(?<!\\)\]\(", message)
    assert re.sub(r"\\([\\\[\]])", r"\1", message) if "](" in text else message.splitlines()[0] == shown(text)


def test_tensorboard_is_given_safe_text(told: tuple[str, Report, dict[str, str]]) -> None:
    """The text is a block of code line by line, and series are named for what is seen of names."""
    written_: list[tuple[Any, ...]] = []

    class Writer:
        """Keeps what it is given."""

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **_: written_.append((name, *args))

    told[1].to_tensorboard(Writer())
    tags = [args[0] for name, *args in written_ if name == "add_scalar"]
    assert tags == [f"gradscope/grad_norm/{spelled(told[0])}"]
    (text,) = (args[1] for name, *args in written_ if name == "add_text")
    assert {token.type for token in tokens(text)} == {"code_block"}


def test_links_of_sarif_are_broken_where_there_are_some() -> None:
    """Brackets are escaped only in a message in which they would make a link."""
    assert sarif_message("layers[0].weight\nb") == "layers[0].weight\nb"
    assert sarif_message(r"[a](//evil) \ [0]") == r"\[a\](//evil) \\ \[0\]"


def test_letters_of_all_alphabets_stay() -> None:
    """Only what cannot be seen is spelled, as Python spells it, and what is spelled stays so."""
    for text in (
        "caf\u00e9",
        "\u6f22\u5b57",
        "e\u0301",
        "\u05d0\u05d1",
        "\U0001f600",
        "a\\b",
        "torch::jit",
        "##",
        ":::",
    ):
        assert shown(text) == (text if text != ":::" else "\\x3a::")
    assert shown("a\x1b\n\t\u202e\u200b\u00a0") == r"a\x1b\n\t\u202e\u200b\xa0"
    for text in TEXTS.values():
        assert shown(shown(text)) == shown(text)


PROGRAM = """
import torch
from torch import nn

NAMES = {names!r}
net = nn.Module()
for name in NAMES:
    net.add_module(name, nn.Linear(3, 3))
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(20):
    x = torch.rand(4, 3)
    for child in list(net.children()):
        x = child(x).detach() if child is not list(net.children())[-1] else child(x)  # \u202e ` \x0c
    loss = x.square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
raise ValueError("\\n".join(NAMES))
"""


def test_a_program_with_hostile_names(workshop: Workshop) -> None:
    """Findings of real rules, told live and at the end, on a terminal and in Markdown, write nothing but names."""
    names = [text.replace(".", "") for name, text in TEXTS.items() if name != "half"]
    path = Path("zq\x1b[2J \u202e`x`.py")
    path.write_text(PROGRAM.format(names=names), encoding="utf-8")
    stream = io.StringIO()
    with Lines(stream) as lines:
        outcome = observe_program(program_of_script(str(path), ("zq\x1b[2J",)), watch=Live(lines).step)
    report = Report.of(outcome.run)
    live = Terminal(stream.getvalue())
    assert stream.getvalue().startswith("gradscope: step 16: error[detach]")
    assert all(line.startswith("gradscope: ") for line in stream.getvalue().splitlines())
    assert (live.deeds(), live.colours) == (set(), set())
    assert len(report.findings) >= 1
    assert report.document.findings[0].tensors[0].startswith(names[0])
    for name, output in everything(report).items():
        assert name in MARKUP or Terminal(output).deeds() <= ({"tab"} if name == "markdown" else set()), name
    for token in tokens(report.to_markdown()):
        assert token.type not in ("link_open", "image", "html_inline")
        assert token.type != "text" or "zq" not in token.content
