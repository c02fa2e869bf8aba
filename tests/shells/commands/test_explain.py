"""`gradscope explain`: the script runs as it would, then the report comes."""

from __future__ import annotations

import json
import os
import signal
import textwrap

import pytest
from click.shell_completion import BashComplete

from gradscope.shells.cli import cli
from tests.waiting import communicated
from tests.workshop import FORUM, Workshop

UNUSED = """
    import torch
    from torch import nn
    net = nn.ModuleDict({"used": nn.Linear(2, 1), "forgotten": nn.Linear(2, 1)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net["used"](torch.rand(4, 2)).sum().backward()
        optimizer.step()
"""


def write_result(workshop: Workshop, line: str = "") -> None:
    """A script with output of its own and one step, after which `line` runs."""
    workshop.write(
        f"""
        import sys
        import torch
        print("before", sys.argv[1:])
        w = torch.ones(2, requires_grad=True)
        w.sum().backward()
        sys.stdout.write("no newline")
        {line}
        """
    )


def test_the_report_follows_the_scripts_output(workshop: Workshop) -> None:
    """The script's standard output comes first and unchanged, then the report."""
    write_result(workshop)
    ended = workshop.gradscope("explain", "script.py", "--steps", "3", "-o", "x")
    assert (ended.status, ended.err) == (0, "")
    own = "before ['--steps', '3', '-o', 'x']\nno newline"
    assert ended.out.startswith(own)
    assert "gradscope: script.py, 1 step" in ended.out.removeprefix(own)


def test_with_an_output_file_stdout_is_the_scripts_alone(workshop: Workshop) -> None:
    """With `-o` nothing of ours is on standard output, and the file has the report in the format of its ending."""
    write_result(workshop)
    for name in ("report.txt", "report.json"):
        ended = workshop.gradscope("explain", "-o", name, "script.py")
        assert ended == (0, "before []\nno newline", "")
    assert (workshop.folder / "report.txt").read_text().startswith("gradscope: script.py, 1 step")
    document = json.loads((workshop.folder / "report.json").read_bytes())
    assert document["schema"] == "gradscope.report/2"
    assert sorted(path.name for path in workshop.folder.glob("*report*")) == ["report.json", "report.txt"]


def test_files_are_named_from_where_the_user_stands(workshop: Workshop) -> None:
    """A script that changes the working directory changes neither where the report goes nor the names in it."""
    (workshop.folder / "elsewhere").mkdir()
    write_result(workshop, "import os; os.chdir('elsewhere')")
    ended = workshop.gradscope("explain", "-o", "report.json", "--save", "run.json", "script.py")
    assert ended.status == 0
    document = json.loads((workshop.folder / "report.json").read_bytes())
    assert {row["location"]["file"] for row in document["tensors"]} == {"script.py"}
    assert (workshop.folder / "run.json").exists()


def test_the_format_can_be_given(workshop: Workshop) -> None:
    """`--format json` writes JSON to standard output, after the script's own."""
    ended = workshop.gradscope("explain", "--format", "json", FORUM)
    document = json.loads(ended.out[ended.out.index("\n{") :])
    assert document["run"]["steps"] == 5
    assert document["script"] == str(FORUM)


def test_modules_run_with_m(workshop: Workshop) -> None:
    """`explain -m package.module ARGS` runs the module with its arguments."""
    workshop.write("", "pack_e/__init__.py")
    workshop.write("import sys\nprint(__name__, sys.argv[1:])\n", "pack_e/tool.py")
    ended = workshop.gradscope("explain", "-m", "pack_e.tool", "-m", "--help")
    assert ended.status == 0
    assert ended.out.startswith("__main__ ['-m', '--help']\n")
    assert "gradscope: pack_e.tool, " in ended.out


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ((), 0),
        (("--fail-on", "warning"), 1),
        (("--fail-on", "info"), 1),
        (("--fail-on", "error"), 0),
        (("--fail-on", "never"), 0),
    ],
)
def test_the_exit_code_tells_of_findings(workshop: Workshop, options: tuple[str, ...], status: int) -> None:
    """The exit code is 1 where there is a finding at the level of `--fail-on`; a warning is none by default."""
    workshop.write(UNUSED)
    ended = workshop.gradscope("explain", *options, "script.py")
    assert "warning[unused-parameter]" in ended.out
    assert ended.status == status


def test_the_scripts_own_exit_code_is_kept(workshop: Workshop) -> None:
    """`sys.exit(3)` ends with 3, and `sys.exit("text")` with 1 and the text, both after the report."""
    write_result(workshop, "sys.exit(3)")
    ended = workshop.gradscope("explain", "script.py")
    assert ended.status == 3
    assert "1 step" in ended.out
    write_result(workshop, "sys.exit('no data')")
    ended = workshop.gradscope("explain", "script.py")
    assert (ended.status, ended.err) == (1, "no data\n")
    assert "1 step" in ended.out


def test_steps_end_the_script(workshop: Workshop) -> None:
    """`--steps 2` ends an endless script after two optimizer steps with exit code 0."""
    workshop.write(
        """
        import itertools
        import torch
        w = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        try:
            for _ in itertools.count():
                optimizer.zero_grad()
                w.sum().backward()
                optimizer.step()
        finally:
            print("tidy")
        """
    )
    ended = workshop.gradscope("explain", "--steps", "2", "script.py")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("tidy\n")
    assert "2 steps (ended by --steps)" in ended.out


RAISING = """
    import threading
    import torch
    import torch.nn.functional as F
    from torch import nn

    print("starts")
    w = torch.ones(2, requires_grad=True)


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

        def forward(self, x):
            return self.layers(x)


    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if len(x) > 2:
                raise ArithmeticError("in forward")
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            raise KeyError("lost")


    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))


    def nested():
        def inner():
            raise ValueError("deep\\ninside")

        inner()

    def in_module():
        Net()(torch.rand(2, 5))

    def in_function():
        F.mse_loss(torch.rand(2, 4), torch.rand(2, 5), reduction="sum")

    def in_functional():
        F.linear(torch.rand(2, 4), torch.rand(2, 5))

    def in_python_function():
        F.cross_entropy(torch.rand(2, 4, 3), target=torch.rand(2), reduction="no")

    def in_mode():
        with Mode():
            F.softmax(torch.rand(2), dim=4)

    def in_custom_forward():
        Broken.apply(torch.rand(3))

    def in_backward():
        Broken.apply(w).sum().backward()

    def without_graph():
        torch.rand(2).sum().backward()

    def in_step():
        optimizer = torch.optim.SGD([w], lr=0.1)
        optimizer.step(lambda: F.linear(w, torch.rand(3, 3)))

    def in_parameter():
        nn.Parameter("text")

    def in_optimizer():
        torch.optim.SGD([], lr=0.1)

    def chained():
        try:
            torch.rand(2, 3) @ torch.rand(2, 3)
        except RuntimeError as error:
            raise LookupError("no such batch") from error

    def while_handling():
        try:
            chained()
        except LookupError:
            in_module()


    errors = []
    for function in (nested, in_module, in_function, in_functional, in_python_function, in_mode, in_custom_forward,
                     in_backward, without_graph, in_step, in_parameter, in_optimizer, chained, while_handling):
        try:
            function()
        except Exception as error:
            errors.append(error)
    assert len(errors) == 14
"""


def test_tracebacks_are_the_users_own(workshop: Workshop) -> None:
    """All kinds of exceptions are shown byte for byte as by bare Python, in threads too, and the exit code is 1."""
    workshop.write(
        textwrap.dedent(RAISING)
        + "thread = threading.Thread(target=in_module, name='worker')\nthread.start()\nthread.join()\n"
        + "raise ExceptionGroup('all', errors)\n"
    )
    bare, seen = workshop.pair("script.py", options=("-o", "report.txt"))
    assert "14 ----" in bare.err
    assert "Exception in thread worker" in bare.err
    assert seen.err == bare.err
    assert (seen.status, bare.status, seen.out) == (1, 1, "starts\n")


def test_the_report_comes_before_the_traceback(workshop: Workshop) -> None:
    """A script that raises gets its report, then the user's own traceback, without a frame of ours."""
    workshop.write(textwrap.dedent(RAISING) + "while_handling()\n")
    bare = workshop.start("script.py")
    with (workshop.folder / "both.txt").open("w") as both:
        seen = workshop.start("-m", "gradscope", "explain", "script.py", stdout=both, stderr=both)
        assert seen.wait(60) == 1
    error = bare.communicate()[1]
    trace = error[error.index("Traceback") :]
    assert trace.count("Traceback") == 3
    written = (workshop.folder / "both.txt").read_text()
    assert written.endswith(trace)
    report = written.removesuffix(trace)
    assert report.index("starts\n") < report.index("gradscope: script.py, ")
    assert "raised RuntimeError" in report
    assert "Traceback" not in report


def test_warnings_and_output_are_the_same(workshop: Workshop) -> None:
    """Standard error with torch's warnings, once for each of the user's lines, and exact numbers are those of bare."""
    workshop.write(
        """
        import warnings
        import torch
        import torch.nn.functional as F
        from torch import nn

        torch.manual_seed(0)
        w = torch.ones(3, 1, requires_grad=True)
        for _ in range(2):
            a = F.mse_loss(w, torch.rand(3))
            b = F.mse_loss(w, torch.rand(3))
            torch.tensor(w)
            torch.tensor(w)
            F.softmax(w)
            nn.Softmax()(w)
        warnings.warn("my own")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            F.mse_loss(w, torch.rand(3))
        print([(warning.filename, warning.lineno) for warning in caught])
        (a + b).backward()
        print((a + b).item().hex(), [x.hex() for x in w.grad.flatten().tolist()], torch.rand(1).item().hex())
        """
    )
    bare, seen = workshop.pair("script.py", options=("-o", "report.txt"))
    assert bare.err.count("Warning: ") == 7
    assert seen == bare


def test_interrupts_end_with_the_report(workshop: Workshop) -> None:
    """Ctrl-C ends the script, prints the report of what was seen without any traceback, and exits with 130."""
    workshop.write(
        """
        import itertools
        import torch
        w = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        for step in itertools.count():
            optimizer.zero_grad()
            w.sum().backward()
            optimizer.step()
            if step == 3:
                print("running", flush=True)
        """
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = workshop.start("-m", "gradscope", "explain", "script.py")
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    out, err = communicated(process)
    assert process.returncode == 130
    assert err == ""
    assert "(interrupted)" in out
    assert "Traceback" not in out


def test_spawned_workers_run_without_us(workshop: Workshop) -> None:
    """Workers that multiprocessing spawns find the script's functions, and neither they nor the script notice us."""
    workshop.write(
        """
        import multiprocessing
        import sys

        def work(n):
            return n * 2, "gradscope.probes.forward.recorder" in sys.modules

        if __name__ == "__main__":
            import torch
            w = torch.ones(2, requires_grad=True)
            w.sum().backward()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(work, [1, 2]))
        """
    )
    bare, seen = workshop.pair("script.py", options=("-o", "report.txt"))
    assert bare == (0, "[(2, False), (4, False)]\n", "")
    assert seen == bare
    assert "1 step" in (workshop.folder / "report.txt").read_text()


BAD = [
    (("explain", "missing.py"), "no such file: missing.py"),
    (("explain", "."), ". is a directory without __main__.py: name the script in it, or a package with -m"),
    (("explain", "broken.py"), "broken.py has a syntax error in line 1: invalid syntax"),
    (("explain", "-m", "no_such_module_z"), "no module to run: No module named no_such_module_z"),
    (("explain", "-m", "no_such_package.module"), "no module to run: "),
    (("explain",), "Missing argument 'SCRIPT'."),
    (("explain", "--format", "yaml", "script.py"), "Invalid value for '--format': 'yaml' is not one of"),
    (("explain", "--steps", "0", "script.py"), "Invalid value for '--steps': 0 is not in the range"),
    (("explain", "--steps", "many", "script.py"), "Invalid value for '--steps': 'many' is not a valid integer"),
    (("explain", "--fail-on", "all", "script.py"), "Invalid value for '--fail-on': 'all' is not one of"),
    (("explain", "--no-such-option", "script.py"), "No such option"),
    (
        ("explain", "-o", "no/such/folder.txt", "script.py"),
        "cannot write no/such/folder.txt: there is no directory no/",
    ),
    (("explain", "-o", ".", "script.py"), ". is a directory: name a file in it"),
    (("explain", "-o", "report.docx", "script.py"), "cannot tell the format of report.docx by its ending"),
    (("explain", "--save", "no/run.json", "script.py"), "cannot write no/run.json: there is no directory no"),
    (("explain", "--graph", "no/graph.png", "script.py"), "no"),
    (("explain", "--graph", "graph.bmp", "script.py"), "graph.bmp"),
    (("explian", "script.py"), "No such command 'explian': did you mean `gradscope explain`?"),
    (("script.py",), "No such command 'script.py': to run a script, `gradscope explain script.py`"),
    (("broken",), "No such command 'broken'; `gradscope --help` lists them"),
    (("explain", "cells.ipynb"), "cells.ipynb is a notebook: begin a cell with %%gradscope"),
    (("explain", "report.json"), "report.json is no script: a kept run is shown by `gradscope show report.json`"),
    (
        ("explain", "--depth", "2", "script.py"),
        "--depth, --open and --style are of the picture: name its file with --gr",
    ),
    (("explain", "--style", "torchviz", "script.py"), "are of the picture"),
    (
        ("explain", "--graph", "a.dot", "--depth", "0", "script.py"),
        "Invalid value for '--depth': 0 is not in the range",
    ),
    (("explain", "-o", "a.txt", "-o", "b.txt", "script.py"), "given 2 times, and there is one report: name one file"),
    (("explain", "--until-finding", "--fail-on", "never", "script.py"), "--until-finding needs a level to end at"),
    (("explain", "--color", "pink", "script.py"), "Invalid value for '--color'"),
]


@pytest.mark.parametrize(
    ("args", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_bad_input_is_one_line_before_any_work(workshop: Workshop, args: tuple[str, ...], message: str) -> None:
    """Misuse gives exactly one line on standard error and exit code 2, before the script has run."""
    workshop.write("print('the script ran')")
    workshop.write("x = = 1", "broken.py")
    workshop.write('{"cells": []}', "cells.ipynb")
    workshop.write('{"schema": "gradscope.report/2"}', "report.json")
    ended = workshop.gradscope(*args)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("gradscope: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err


def test_a_protected_folder_is_refused_before_any_work(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output in a folder without permission is refused before the script runs."""
    workshop.write("print('the script ran')")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, as whom tests may run, has every permission
    ended = workshop.gradscope("explain", "-o", "report.txt", "script.py")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "gradscope: cannot write report.txt: permission denied\n"


def test_a_report_that_cannot_be_written_in_the_end_is_one_line(workshop: Workshop) -> None:
    """Where the folder of the report vanishes meanwhile, one line says so, and the exit code is 2."""
    (workshop.folder / "out").mkdir()
    workshop.write("import os; os.rmdir('out'); print('done')")
    ended = workshop.gradscope("explain", "-o", "out/report.txt", "script.py")
    assert (ended.status, ended.out) == (2, "done\n")
    assert ended.err.startswith("gradscope: cannot write ")
    assert ended.err.count("\n") == 1


def test_help_names_every_option(workshop: Workshop) -> None:
    """`explain --help` tells of each option that the documentation shows."""
    out = workshop.gradscope("explain", "--help").out
    for option in ("--steps", "--format", "-o, --output", "--graph", "--fail-on", "--save", "--all", "-m"):
        assert option in out


def test_nothing_of_the_command_line_imports_torch(workshop: Workshop) -> None:
    """`--help`, `show` and importing gradscope never import torch."""
    workshop.write(UNUSED)
    assert workshop.gradscope("explain", "--save", "run.json", "script.py").status == 0
    workshop.write(
        """
        import sys
        import gradscope
        from gradscope.shells.cli import main

        for args in (["--help"], ["--version"], ["explain", "--help"], ["show", "run.json"], ["show", "--all",
                     "--format", "json", "run.json"], ["show", "--graph", "graph.dot", "run.json"], ["explain"]):
            sys.argv = ["gradscope", *args]
            try:
                main()
            except SystemExit as ended:
                print("exit", ended.code)
            assert "torch" not in sys.modules, args
        """,
        "tour.py",
    )
    ended = workshop.python("tour.py")
    assert ended.status == 0, ended.err
    assert [line for line in ended.out.splitlines() if line.startswith("exit")] == [
        "exit 0",
        "exit 0",
        "exit 0",
        "exit 0",
        "exit 0",
        "exit 0",
        "exit 2",
    ]


def test_python_m_gradscope(workshop: Workshop) -> None:
    """`python -m gradscope` and the script `gradscope` are the same command."""
    version = workshop.python("-m", "gradscope", "--version")
    assert version.status == 0
    assert version.out.startswith("gradscope ")


def test_nothing_of_the_user_is_overwritten(workshop: Workshop) -> None:
    """A report or a run replaces neither the script, nor the kept run that is shown, nor one another, nor a link."""
    script = workshop.write("print('kept')")
    before = script.read_bytes()
    for args in (
        ["--save", "script.py"],
        ["-o", "script.py", "--format", "json"],
        ["--save", "a.json", "-o", "a.json"],
    ):
        ended = workshop.gradscope("explain", *args, "script.py")
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.endswith("is named twice: it would be overwritten, give another name\n")
    assert script.read_bytes() == before
    assert workshop.gradscope("explain", "--save", "run.json", "script.py").status == 0
    kept = (workshop.folder / "run.json").read_bytes()
    assert workshop.gradscope("show", "run.json", "-o", "run.json").status == 2
    assert (workshop.folder / "run.json").read_bytes() == kept
    (workshop.folder / "link.json").symlink_to("real.json")
    assert workshop.gradscope("show", "run.json", "-o", "link.json").status == 0
    assert (workshop.folder / "link.json").is_symlink()
    assert (workshop.folder / "real.json").exists()


DETACHED = """
import torch
from torch import nn

encoder, decoder = nn.Linear(3, 2), nn.Linear(2, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
for _ in range(40):
    loss = decoder(encoder(torch.ones(8, 3)).detach()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("ends without a newline", end="")
"""


def test_quiet_tells_nothing_but_the_report(workshop: Workshop) -> None:
    """`--quiet` leaves standard error to the script, and the report begins on a line of its own."""
    workshop.write(DETACHED)
    ended = workshop.gradscope("explain", "--quiet", "--graph", "graph.dot", "script.py")
    assert (ended.status, ended.err) == (1, "")
    assert ended.out.startswith("ends without a newline\nerror[detach]: ")


def test_a_script_ends_at_its_first_finding(workshop: Workshop) -> None:
    """`--until-finding` ends the script at a finding of the level of `--fail-on`, and no other."""
    workshop.write(DETACHED)
    ended = workshop.gradscope("explain", "-q", "--until-finding", "script.py")
    assert ended.out.startswith("error[detach]: ")
    assert "16 steps (ended by --until-finding)" in ended.out
    ended = workshop.gradscope("explain", "-q", "--until-finding", "--ignore", "detach", "script.py")
    assert ended.out.startswith("ends without a newline")
    assert "40 steps" in ended.out


def test_colour_as_it_is_wanted(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option comes before NO_COLOR, and that before FORCE_COLOR; a pipe gets no colour by itself."""
    workshop.write(DETACHED)
    workshop.gradscope("explain", "-q", "--save", "run.json", "script.py")

    def coloured(*options: str) -> bool:
        return "\x1b[31;1merror[detach]\x1b[0m" in workshop.gradscope("show", *options, "run.json").out

    assert [coloured(), coloured("--color", "always"), coloured("--color", "never")] == [False, True, False]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert [coloured(), coloured("--color", "never")] == [True, False]
    monkeypatch.setenv("NO_COLOR", "1")
    assert [coloured(), coloured("--color", "always")] == [False, True]


def test_concise_is_a_line_for_each_finding(workshop: Workshop) -> None:
    """`--format concise` has file, line, column, rule and message on one line."""
    workshop.write(DETACHED)
    ended = workshop.gradscope("explain", "-q", "--format", "concise", "-o", "found.txt", "script.py")
    assert ended.out == "ends without a newline"
    assert (workshop.folder / "found.txt").read_text() == (
        "script.py:7:45: error[detach] `encoder` never learns: its 2 parameters got no gradient in 40 steps\n"
    )


@pytest.mark.parametrize(
    ("source", "args", "hinted"),
    [
        ("print('no use for it')", ("--steps", "3"), True),
        ("print('no use for it')", ("--graph=a.png",), True),
        ("print('no use for it')", ("--lr", "3"), False),
        ("import sys; print(sys.argv[1:])", ("--steps", "3"), False),
        ("import argparse; p = argparse.ArgumentParser(); p.add_argument('--steps'); p.parse_args()", ("--all",), True),
        (
            "import argparse; p = argparse.ArgumentParser(); p.add_argument('--all'); p.parse_args()",
            ("--all", ""),
            False,
        ),
    ],
    ids=["unread", "unread_with_a_value", "not_ours", "read", "refused", "taken"],
)
def test_options_behind_the_script_are_hinted_at(
    workshop: Workshop, source: str, args: tuple[str, ...], hinted: bool
) -> None:
    """What follows the script's name is the script's; where it has no use for it, a line says where it belongs."""
    workshop.write(source)
    ended = workshop.gradscope("explain", "script.py", *args)
    assert ("options of gradscope stand before it" in ended.err) == hinted


@pytest.mark.parametrize(
    ("words", "begun", "offered"),
    [
        ((), "ex", ["explain"]),
        (("explain",), "--until", ["--until-finding"]),
        (("explain", "--select"), "no-grad,deta", ["no-grad,detach"]),
        (("rule",), "deta", ["detach"]),
        (("show", "-o"), "rep", ["rep"]),
        (("explain",), "scr", ["scr"]),
    ],
)
def test_a_shell_completes(words: tuple[str, ...], begun: str, offered: list[str]) -> None:
    """What a shell is offered: commands, options, rules behind a comma; of files it finds the names itself."""
    completion = BashComplete(cli, {}, "gradscope", "_GRADSCOPE_COMPLETE")
    items = completion.get_completions(list(words), begun)
    assert [item.value for item in items] == offered
    assert {item.type for item in items} == {"file" if begun in ("rep", "scr") else "plain"}
