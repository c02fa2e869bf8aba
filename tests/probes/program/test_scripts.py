"""Programs run as Python would run them."""

from __future__ import annotations

import json
import os
import sys
import zipapp
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gradscope.probes.program.scripts import ScriptError, observe_program, program_of_module, program_of_script
from gradscope.reports.report import Report
from tests.workshop import Workshop, named, operations

TRAINING = """
    import torch
    w = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        (w ** 2).sum().backward()
        optimizer.step()
"""


def test_the_scene_is_that_of_python(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """A script sees `__name__`, `__file__`, `sys.argv`, `sys.path[0]` and its globals as Python sets them."""
    folder = workshop.folder / "deep"
    workshop.write(
        """
        import sys
        import __main__
        print(__name__, __file__, sys.argv, sys.path[0], __main__.__dict__ is globals())
        print(__package__, __spec__, __doc__, __cached__, __builtins__ is not None, type(__loader__).__name__)
        print(sorted(globals()))
        """,
        "deep/script.py",
    )
    bare = workshop.python("deep/script.py", "--lr", "0.1", "-x")
    outcome = observe_program(program_of_script("deep/script.py", ("--lr", "0.1", "-x")))
    assert outcome.error is None
    assert capsys.readouterr().out == bare.out
    assert str(folder) in bare.out


def test_the_scene_is_taken_down(workshop: Workshop) -> None:
    """Afterwards `sys.argv`, `sys.path` and `__main__` are the caller's again."""
    before = list(sys.argv), list(sys.path), sys.modules["__main__"]
    workshop.run("import sys; sys.argv.append('x'); sys.path.append('y')")
    assert (sys.argv, sys.path, sys.modules["__main__"]) == before


def test_modules_beside_the_script_are_found(workshop: Workshop) -> None:
    """A project of several files runs, and spans name the file in which the operation stands."""
    workshop.write("import torch\n\n\ndef hidden(x):\n    return torch.tanh(x)\n", "project_a/layers_a.py")
    workshop.write(
        """
        import torch
        from layers_a import hidden
        w = torch.ones(2, requires_grad=True)
        loss = hidden(w).sum()
        loss.backward()
        """,
        "project_a/train.py",
    )
    run = observe_program(program_of_script("project_a/train.py", ())).run
    places = {op.name: (op.span.file, op.span.line, op.span.function) for op in operations(run) if op.span}
    assert places["tanh"] == (os.path.join("project_a", "layers_a.py"), 5, "hidden")
    assert places["Tensor.sum"] == (os.path.join("project_a", "train.py"), 4, "<module>")
    assert run.sources[os.path.join("project_a", "layers_a.py")][5] == "    return torch.tanh(x)"


def test_modules_run_as_with_m(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """With `-m`, a module sees `__package__`, `__spec__`, `sys.argv` and `sys.path[0]`, and imports, as in Python."""
    workshop.write("", "pack_m/__init__.py")
    workshop.write("WIDTH = 3\n", "pack_m/settings.py")
    workshop.write(
        """
        import sys
        import torch
        from .settings import WIDTH
        print(__name__, __package__, __spec__.name, __file__, sys.argv, repr(sys.path[0]), sorted(globals()))
        w = torch.ones(WIDTH, requires_grad=True)
        w.sum().backward()
        """,
        "pack_m/train.py",
    )
    bare = workshop.python("-m", "pack_m.train", "--epochs", "2")
    assert bare.status == 0
    outcome = observe_program(program_of_module("pack_m.train", ("--epochs", "2")))
    assert outcome.error is None
    assert capsys.readouterr().out == bare.out
    assert outcome.run.argv == ("--epochs", "2")
    assert outcome.run.backward_count == 1


def test_a_package_runs_its_main(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """`-m package` runs `package/__main__.py`."""
    workshop.write("", "pack_n/__init__.py")
    workshop.write("print(__name__, __package__)", "pack_n/__main__.py")
    observe_program(program_of_module("pack_n", ()))
    assert capsys.readouterr().out == "__main__ pack_n\n"


@pytest.mark.parametrize(
    ("source", "status", "err"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit(True)", 1, ""),
        ("import sys; sys.exit('no data')", 1, "no data\n"),
        ("raise SystemExit(7)", 7, ""),
    ],
)
def test_exit_status_is_kept(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], source: str, status: int, err: str
) -> None:
    """The status of `sys.exit` is the script's, and a text that it was given goes to standard error."""
    outcome = workshop.observe(source)
    assert (outcome.status, outcome.error) == (status, None)
    assert capsys.readouterr().err == err
    assert outcome.run.ended == ("end" if source == "pass" else "exit")


def test_steps_end_the_script(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """With `steps` the script ends at that optimizer step; `finally` blocks run, later lines do not."""
    outcome = workshop.observe(
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        try:
            for step in range(100):
                optimizer.zero_grad()
                (w ** 2).sum().backward()
                optimizer.step()
                print("after", step)
        except Exception:
            print("swallowed")
        finally:
            print("finally")
        print("end")
        """,
        steps=3,
    )
    assert capsys.readouterr().out == "after 0\nafter 1\nfinally\n"
    assert (outcome.run.ended, outcome.run.step_count, outcome.status) == ("steps", 3, 0)
    received = named(outcome.run, "w").received
    assert received is not None
    assert (received.steps, received.of) == (3, 3)


def test_more_steps_than_the_script_has(workshop: Workshop) -> None:
    """A script that makes fewer steps than asked for runs to its own end."""
    run = workshop.run(TRAINING, steps=50)
    assert (run.ended, run.step_count) == ("end", 6)


def test_exceptions_are_told_with_their_place(workshop: Workshop) -> None:
    """An exception is kept with its type, first line and the user's innermost expression, and so is what was seen."""
    outcome = workshop.observe(
        """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 2)

            def forward(self, x):
                return self.fc(x)

        net = Net()
        net(torch.rand(3, 4)).sum().backward()
        net(torch.rand(3, 5))
        """
    )
    crash = outcome.run.crash
    assert crash is not None
    assert (crash.type, crash.message) == (
        "RuntimeError", "mat1 and mat2 shapes cannot be multiplied (3x5 and 4x2)",
    )  # fmt: skip
    assert crash.span is not None
    assert (crash.span.line, crash.span.column, crash.span.end_column) == (10, 16, 26)
    assert crash.span.function == "Net.forward"
    assert (outcome.run.ended, outcome.status) == ("exception", 1)
    assert outcome.run.backward_count == 1
    assert operations(outcome.run)[-1].failed


@pytest.mark.parametrize("how", ["from error", "from None", ""])
def test_wrapped_exceptions_are_told_by_their_cause(how: str, workshop: Workshop) -> None:
    """Where the script raises its own exception for one of torch's, the findings are about torch's."""
    outcome = workshop.observe(
        f"""
        import torch

        class TrainingFailed(Exception):
            pass

        w = torch.ones(3, requires_grad=True)
        try:
            w.exp().backward()
        except RuntimeError as error:
            raise TrainingFailed("in step 1") {how}
        """
    )
    assert outcome.error is not None
    assert type(outcome.error).__name__ == "TrainingFailed"
    crash = outcome.run.crash
    assert crash is not None
    assert crash.raised is not None
    assert crash.span is not None
    assert (crash.type, crash.symptom, crash.span.line) == ("RuntimeError", "no scalar", 8)
    report = Report.of(outcome.run)
    assert [finding.rule for finding in report.findings] == ["non-scalar-backward"]
    raised = report.document.run.exception
    assert raised is not None
    assert (raised.type, raised.message, raised.line) == ("TrainingFailed", "in step 1", 10)


def test_an_error_of_its_own_is_not_that_which_was_handled(workshop: Workshop) -> None:
    """What torch raised and the script has dealt with is no cause of what torch raises after it."""
    outcome = workshop.observe(
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        try:
            w.exp().backward()
        except RuntimeError:
            torch.ones(3).sum().backward()
        """
    )
    crash = outcome.run.crash
    assert crash is not None
    assert (crash.symptom, crash.raised) == ("no graph", None)


def test_interrupts_end_the_observation(workshop: Workshop) -> None:
    """A KeyboardInterrupt ends the run as `interrupt` with status 130, and what was seen is kept."""
    outcome = workshop.observe(TRAINING + "        if step == 2:\n            raise KeyboardInterrupt\n")
    assert (outcome.run.ended, outcome.status, outcome.error) == ("interrupt", 130, None)
    assert outcome.run.step_count == 3


def test_manual_updates(workshop: Workshop) -> None:
    """Without an optimizer each backward is a step; gradients and movements are counted all the same."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        for _ in range(4):
            loss = (w ** 2).sum()
            loss.backward()
            with torch.no_grad():
                w -= 0.1 * w.grad
                w.grad = None
        """
    )
    w = named(run, "w")
    assert (run.step_count, run.backward_count, len(run.optimizers)) == (4, 4, 0)
    assert w.received is not None
    assert (w.received.steps, w.received.of) == (4, 4)
    assert w.change
    assert w.requires_grad
    assert w.leaf


def test_without_backward_the_outputs_are_differentiated(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without backward the outputs are found and confirmed, and `.grad` stays None."""
    run = workshop.run(
        """
        import atexit
        import torch
        net = torch.nn.Linear(3, 2)
        unused = torch.nn.Linear(3, 2)
        x = torch.rand(4, 3)
        out = net(x)
        norm = out.norm()
        keep = (net, unused)
        """
    )
    assert run.backward_count == 0
    (confirmation,) = run.steps[-1].backwards
    assert (confirmation.kind, confirmation.failed) == ("confirmation", False)
    names = {tensor.id: tensor.name for tensor in run.tensors}
    values = {value.id: value.tensor for value in run.values}
    assert [names[values[root]] for root in confirmation.roots] == ["norm"]
    assert {names[arrival] for arrival in confirmation.arrivals} == {"net.weight", "net.bias"}
    for name, reached in (("net.weight", True), ("unused.weight", False)):
        tensor = named(run, name)
        assert tensor.predicted is reached
        assert tensor.received is not None
        assert (tensor.received.steps, tensor.received.of) == (int(reached), 1)


def test_confirmation_leaves_grad_alone(workshop: Workshop) -> None:
    """The confirmation of outputs neither fills nor changes any `.grad`."""
    w = torch.ones(3, requires_grad=True)
    torch.kept_for_test = w  # type: ignore[attr-defined]
    try:
        run = workshop.run("import torch\nout = (torch.kept_for_test * 2).sum()\n")
    finally:
        del torch.kept_for_test  # type: ignore[attr-defined]
    assert run.steps[-1].backwards[0].kind == "confirmation"
    assert w.grad is None


def test_several_models_and_optimizers(workshop: Workshop) -> None:
    """Each optimizer's tensors are counted in that optimizer's steps."""
    run = workshop.run(
        """
        import torch
        encoder, head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
        slow = torch.optim.Adam(encoder.parameters(), lr=0.01)
        fast = torch.optim.SGD(head.parameters(), lr=0.1)
        for step in range(6):
            loss = head(encoder(torch.rand(4, 3))).mean()
            loss.backward()
            fast.step()
            fast.zero_grad()
            if step % 3 == 2:
                slow.step()
                slow.zero_grad()
        """
    )
    assert [(optimizer.name, optimizer.steps) for optimizer in run.optimizers] == [("Adam", 2), ("SGD", 6)]
    for name, steps in (("encoder.weight", 2), ("head.weight", 6)):
        received = named(run, name).received
        assert received is not None
        assert (received.steps, received.of) == (steps, steps)
    assert run.step_count == 8


def test_autograd_grad_alone(workshop: Workshop) -> None:
    """Gradients out of `torch.autograd.grad` are received like those of backward."""
    run = workshop.run(
        """
        import torch
        w, b, idle = (torch.ones(2, requires_grad=True) for _ in range(3))
        for _ in range(3):
            loss = (w * 2 + b).sum()
            gradients = torch.autograd.grad(loss, [w, b, idle], allow_unused=True)
            with torch.no_grad():
                w -= 0.1 * gradients[0]
                b -= 0.1 * gradients[1]
        """
    )
    assert [backward.kind for step in run.steps for backward in step.backwards] == ["grad"] * 3
    for name, steps in (("w", 3), ("b", 3), ("idle", 0)):
        received = named(run, name).received
        assert (received.steps if received else 0) == steps
    assert named(run, "w").change


def test_lbfgs_closures(workshop: Workshop) -> None:
    """A step of L-BFGS that calls its closure many times is one step."""
    run = workshop.run(
        """
        import torch
        w = torch.ones(3, requires_grad=True)
        target = torch.arange(3.0)
        optimizer = torch.optim.LBFGS([w], lr=0.5, max_iter=5)

        def closure():
            optimizer.zero_grad()
            loss = ((w - target) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
        """
    )
    assert run.step_count == 2
    assert run.backward_count > 2
    received = named(run, "w").received
    assert received is not None
    assert (received.steps, received.of) == (2, 2)
    assert named(run, "w").change


@pytest.mark.parametrize("ending", ["", "sys.exit('stopped')"])
def test_threads_are_seen(ending: str, workshop: Workshop) -> None:
    """What threads of the script compute is recorded, and the run waits for them as Python does, however it ends."""
    outcome = workshop.observe(
        f"""
        import sys
        import threading
        import torch
        w = torch.ones(3, requires_grad=True)
        go = threading.Event()

        def work():
            go.wait(10)
            (torch.sin(w) * 2).sum().backward()

        worker = threading.Thread(target=work)
        worker.start()
        threading.Timer(0, go.set).start()
        {ending}
        """
    )
    run = outcome.run
    assert (outcome.status, run.ended) == ((1, "exit") if ending else (0, "end"))
    assert run.backward_count == 1
    assert "sin" in [operation.name for operation in operations(run)]
    assert named(run, "w").received is not None


def test_executors_that_are_left_open(workshop: Workshop) -> None:
    """Their work is waited for, as Python does; workers of somebody else's executor are left in peace."""
    with ThreadPoolExecutor(1) as other:
        other.submit(int).result()
        run = workshop.run(
            """
            import multiprocessing
            import time
            from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
            import torch
            w = torch.ones(3, requires_grad=True)

            def work():
                time.sleep(0.05)
                w.sum().backward()

            if __name__ == "__main__":
                executor = ThreadPoolExecutor(1)
                for _ in range(3):
                    executor.submit(work)
                processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
                processes.submit(int).result()
            """
        )
        assert run.backward_count == 3
        assert other.submit(int).result() == 0


def test_forked_workers_run_without_us(workshop: Workshop) -> None:
    """A forked process computes and ends as it would have, without a report; its operations are not the parent's."""
    workshop.write(
        """
        import atexit
        import os
        import sys
        import torch
        w = torch.ones(3, requires_grad=True)
        w.sum().backward()
        first = os.getpid()
        atexit.register(lambda: print("bye", os.getpid() == first, __import__("__main__").w.shape, flush=True))

        class Kept:
            def __del__(self):
                print("dropped", flush=True)

        kept = Kept()

        def fork(end):
            child = os.fork()
            if child == 0:
                torch.cos(w)
                end()
            return child

        def fail():
            raise ValueError("in the child")

        def fail_in_hook():
            sys.excepthook = lambda *_: 1 / 0
            fail()

        def nested():
            os.waitpid(fork(lambda: sys.exit("within")), 0)
            sys.exit(4)

        def interrupt():
            os.kill(os.getpid(), 2)
            torch.cos(w)

        ends = [lambda: sys.exit(5), lambda: sys.exit("words"), fail, fail_in_hook, nested, lambda: os._exit(6)]
        ends.append(interrupt)
        for number, end in enumerate(ends):
            child = fork(end)
            print(number, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        if os.fork() == 0:
            print("to its end", flush=True)
        else:
            os.wait()
            raise KeyError("of the parent")
        """
    )
    bare, seen = workshop.pair("script.py", options=("--format", "json", "-o", "report.json"))
    assert (seen.status, seen.out) == (bare.status, bare.out)
    assert seen.err == bare.err
    numbered = [line for line in bare.out.splitlines() if line[0].isdigit()]
    assert numbered == ["0 5", "1 1", "2 1", "3 1", "4 4", "5 6", "6 -2"]
    report = (workshop.folder / "report.json").read_text()
    assert "cos" not in report
    assert json.loads(report)["run"]["ended"] == "exception"


def test_recursion_goes_as_deep_as_in_python(workshop: Workshop) -> None:
    """What lies below the script takes no depth from it, nor from its threads, and the limit reads as it was set."""
    workshop.write(
        """
        import sys
        import threading

        def down(n):
            return 0 if n == 0 else 1 + down(n - 1)

        def deepest():
            limit = sys.getrecursionlimit()
            for n in range(limit - 40, limit + 1):
                try:
                    down(n)
                except RecursionError:
                    return limit, n
            return limit, None

        def tell(name):
            print(name, *deepest())

        def in_thread(name):
            thread = threading.Thread(target=tell, args=[name])
            thread.start()
            thread.join()

        tell("main")
        in_thread("thread")
        sys.setrecursionlimit(1200)
        tell("set")
        in_thread("set in thread")
        for limit in (0, -3, 1, "many", 2**50):
            try:
                sys.setrecursionlimit(limit)
            except Exception as error:
                print(type(error).__name__)
        sys.setrecursionlimit(1000)

        import torch
        from torch import nn

        class Around(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x * sys.getrecursionlimit())

        def nested(n):
            net = nn.Identity()
            for _ in range(n):
                net = Around(net)
            return net(torch.ones(1)).shape

        class Twice(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, n):
                return Twice.apply(x, n - 1) if n else x * 2

        class Endless(nn.Module):
            def forward(self, x):
                return self(x * 2)

        def within(call):
            return call() if call is tell else within(call)

        def sine(t):
            return sine(torch.sin(t))

        def joined(t):
            return joined(torch.cat([t]))

        def summed(t):
            return summed(t.sum())

        def calls(n, t):
            return t if n == 0 else calls(n - 1, torch.sin(t))

        ways = [
            lambda: nested(230),
            lambda: Twice.apply(torch.ones(1), 300),
            lambda: calls(900, torch.ones(1)),
            lambda: Endless()(torch.ones(1)),
            lambda: within(sine),
            lambda: sine(torch.ones(1)),
            lambda: joined(torch.ones(1)),
            lambda: summed(torch.ones(1)),
        ]
        for number, way in enumerate(ways):
            try:
                print(number, way())
            except RecursionError as error:
                frames, trace = 0, error.__traceback__
                while trace is not None:
                    frames, trace = frames + 1, trace.tb_next
                print(number, error, frames, error.__context__)
            torch.ones(1).sin()
            tell(number)
        sine(torch.ones(1))
        """
    )
    bare, seen = workshop.pair("script.py", options=("--format", "json", "-o", "report.json"))
    assert (seen.out, seen.err) == (bare.out, bare.err)
    assert bare.out.startswith("main 1000 ")
    assert "[Previous line repeated 99" in bare.err
    assert json.loads((workshop.folder / "report.json").read_text(encoding="utf-8"))["failures"] == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("missing.py", "no such file: missing.py"),
        (".", ". is a directory without __main__.py: name the script in it, or a package with -m"),
        ("broken.py", "broken.py has a syntax error in line 2: invalid syntax"),
        ("binary.py", "binary.py has a syntax error in line 1: (unicode error) 'utf-8' codec can't decode byte 0xff"),
        ("null.py", "null.py is no script: it has a syntax error, for it holds null bytes as no text does"),
    ],
)
def test_what_is_no_script_is_refused(workshop: Workshop, script: str, message: str) -> None:
    """A file that is missing, a directory or not Python gives one line that says which."""
    workshop.write("x = 1\ny = = 2\n", "broken.py")
    (workshop.folder / "binary.py").write_bytes(b"\xff\xfe\xff")
    (workshop.folder / "null.py").write_bytes(b"x = 1\0")
    with pytest.raises(ScriptError) as raised:
        program_of_script(script, ())
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("module", ["no_such_module_q", "pack_broken", "pack_broken.sub.deeper", "torch.nn", ".x", ""])
def test_what_is_no_module_is_refused(workshop: Workshop, module: str) -> None:
    """`-m` with a module that is missing, broken or a package without `__main__` gives one line."""
    workshop.write("", "pack_broken/__init__.py")
    workshop.write("def", "pack_broken/__main__.py")
    before = list(sys.path)
    with pytest.raises(ScriptError) as raised:
        program_of_module(module, ())
    assert "\n" not in str(raised.value)
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"x = 1\n# caf\xe9\n", "in line 2: the byte 0xe9 is no UTF-8, and no other encoding is declared"),
        (b"print('\xff')\n", "in line 1: (unicode error) 'utf-8' codec can't decode byte 0xff"),
        (b"\xef\xbb\xbf# with a mark\n# \xe9\n", "in line 2: the byte 0xe9"),
        ("x = 1".encode("utf-16"), "holds null bytes"),
        (b"# coding: no-such-encoding\n", ": unknown encoding: no-such-encoding"),
        (b"# coding: ascii\nx = '\xe9'\n", ": 'ascii' codec can't decode byte 0xe9"),
        (b"x = 1\0\n", "holds null bytes"),
    ],
)
def test_a_source_that_python_refuses_is_refused(workshop: Workshop, source: bytes, said: str) -> None:
    """What is not in its encoding is no program, in comments as well."""
    (workshop.folder / "script.py").write_bytes(source)
    with pytest.raises(ScriptError) as refused:
        program_of_script("script.py", ())
    assert str(refused.value).startswith("script.py ")
    assert "has a syntax error" in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("head", "encoding", "end"),
    [
        (head, encoding, end)
        for head, encoding in (("", "utf-8"), ("", "utf-8-sig"), ("# coding: latin-1\n", "latin-1"))
        for end in ("\n", "\r\n", "\r")
        if encoding != "latin-1" or end != "\r"
    ],
)
def test_lines_and_columns_are_right_in_every_encoding(workshop: Workshop, head: str, encoding: str, end: str) -> None:
    """A declared encoding, a mark, and other ends of lines: the caret is under the expression."""
    text = head + "import torch\n\fé = torch.ones(2, requires_grad=True); ö = é.detach().sum()\né.sum().backward()"
    (workshop.folder / "script.py").write_bytes(text.replace("\n", end).encode(encoding))
    outcome = observe_program(program_of_script("script.py", ()))
    assert outcome.error is None
    (span,) = {op.span for op in operations(outcome.run) if op.name == "Tensor.detach"}
    assert span is not None
    assert (
        outcome.run.sources["script.py"][span.line][(span.column or 0) - 1 : (span.end_column or 0) - 1] == "é.detach()"
    )


def test_a_script_may_come_through_a_pipe(workshop: Workshop) -> None:
    """It is read once; its lines are known all the same."""
    pipe = workshop.folder / "pipe.py"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_text, "import torch\nw = torch.ones(2, requires_grad=True)\nw.sum().backward()\n")
        program = program_of_script("pipe.py", ())
    outcome = observe_program(program)
    assert outcome.error is None
    assert outcome.run.sources["pipe.py"][2] == "w = torch.ones(2, requires_grad=True)"


@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_a_directory_or_an_archive_with_a_main_is_run(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """`explain DIR` and `explain app.pyz` are what `python DIR` and `python app.pyz` are, and show their lines."""
    workshop.write(
        """
        import sys
        import part_of_app
        print(__name__, __file__, repr(__package__), __spec__.name, sys.argv, sys.path[0], type(__loader__).__name__)
        print(__cached__, sorted(globals()))
        part_of_app.train()
        """,
        "app/__main__.py",
    )
    lines = "import torch\n\n\ndef train():\n    w = torch.ones(2, requires_grad=True)\n    w.sum().backward()\n"
    workshop.write(lines, "app/part_of_app.py")
    script = "app"
    if kind == "archive":
        zipapp.create_archive(workshop.folder / "app", workshop.folder / "app.pyz", interpreter="/usr/bin/env python3")
        script = "app.pyz"
    try:
        outcome = observe_program(program_of_script(script, ("--lr", "1")))
    finally:
        sys.modules.pop("part_of_app", None)
    assert outcome.error is None
    seen = capsys.readouterr().out
    assert seen == workshop.python(script, "--lr", "1").out
    assert outcome.run.sources[f"{script}/part_of_app.py"][5] == "    w = torch.ones(2, requires_grad=True)"


def test_an_archive_without_a_main_is_refused(workshop: Workshop) -> None:
    """As a directory is; and a main with a syntax error is told as one."""
    with zipfile.ZipFile(workshop.folder / "app.zip", "w") as archive:
        archive.writestr("other.py", "x = 1")
    with pytest.raises(ScriptError, match=r"^app.zip is an archive without __main__.py: "):
        program_of_script("app.zip", ())
    workshop.write("x = = 1", "app/__main__.py")
    with pytest.raises(ScriptError, match=r"^app/__main__.py has a syntax error in line 1: invalid syntax"):
        program_of_script("app", ())
