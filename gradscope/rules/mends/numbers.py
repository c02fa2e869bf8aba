"""Mends of numbers: another learning rate, units that start apart, a way round what is flat."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Optimizer, Span
from gradscope.graph.rewriting import Edits, Text, statement_at, text_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)
_FLAT = ("round", "sign", "floor", "ceil")
_UNIFORM = ("zeros_", "ones_", "constant_")
_PLACES = 3  # a rate is given by a name of a name at most


# --- learning rates --------------------------------------------------------------------------------------------------


def at_a_rate(ask: Ask, optimizer: Optimizer, rate: str) -> Edits:
    """Another learning rate, where the program writes it down: in the call, a default, a table of settings."""
    made = optimizer.made
    text = ask(text_of, made.file) if made is not None else None
    call = text.at(made, ast.Call) if text is not None and made is not None else None
    if text is None or call is None:
        return ()
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "lr"), None)
    given = given or (call.args[1] if len(call.args) > 1 else None)
    number = _number(text, given, _PLACES) if given is not None else None
    return (text.replaced(number, rate),) if number is not None else ()


def _number(text: Text, node: ast.expr, places: int) -> ast.Constant | None:
    """The number that an expression stands for, where one place of the file says what it is."""
    if isinstance(node, ast.Constant):
        return node if isinstance(node.value, float | int) and not isinstance(node.value, bool) else None
    found = list(_sources(text, node)) if places else []
    numbers = [number for source in found if (number := _number(text, source, places - 1)) is not None]
    return numbers[0] if len(found) == len(numbers) == 1 else None


def _sources(text: Text, node: ast.expr) -> Iterator[ast.expr]:
    """The expressions that give a variable, an entry or an attribute its value."""
    if isinstance(node, ast.Name):
        home = next(text.around(node, *_FUNCTIONS), text.tree)
        own = list(_given_in(text, home, node.id))
        yield from own or (_assigned(text.tree, node.id) if home is not text.tree else ())
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        yield from _entries(text.tree, node.slice.value)
    elif isinstance(node, ast.Attribute):
        yield from _settings(text, node.attr)


def _given_in(text: Text, home: ast.AST, name: str) -> Iterator[ast.expr]:
    yield from _assigned(home, name)
    if not isinstance(home, ast.FunctionDef):
        return
    arguments = home.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip([a.arg for a in reversed(positional)], reversed(arguments.defaults), strict=False))
    defaults |= {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None}
    place = next((number for number, argument in enumerate(positional) if argument.arg == name), None)
    owner = next(text.around(home, ast.ClassDef), None)
    called = owner.name if isinstance(owner, ast.ClassDef) and home.name == "__init__" else home.name
    skipped = 1 if positional and positional[0].arg == "self" else 0
    calls = [
        node
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == called
    ]
    for call in calls:
        named = [keyword.value for keyword in call.keywords if keyword.arg == name]
        if place is not None and len(call.args) > place - skipped:
            named.append(call.args[place - skipped])
        yield from named or ([defaults[name]] if name in defaults else [])
        if not named:
            return  # all that give none take the default
    if not calls and name in defaults:
        yield defaults[name]


def _assigned(home: ast.AST, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(home):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    yield node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=False)
                    yield from (value for each, value in pairs if isinstance(each, ast.Name) and each.id == name)


def _entries(tree: ast.AST, key: object) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield from (value for name, value in pairs if isinstance(name, ast.Constant) and name.value == key)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            yield from (keyword.value for keyword in node.keywords if keyword.arg == key)


def _settings(text: Text, name: str) -> Iterator[ast.expr]:
    """The fields of classes, defaults of command lines and attributes of `self` of a name."""
    for node in ast.walk(text.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "add_argument":
            flags = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if any(isinstance(flag, str) and flag.lstrip("-").replace("-", "_") == name for flag in flags):
                yield from (keyword.value for keyword in node.keywords if keyword.arg == "default")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            if node.value is not None and isinstance(text.parents[node], ast.ClassDef):
                yield node.value
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                own = isinstance(target, ast.Attribute) and target.attr == name
                field = isinstance(target, ast.Name) and target.id == name
                if own or (field and isinstance(text.parents[node], ast.ClassDef)):
                    yield node.value


# --- what starts alike, and what is flat -----------------------------------------------------------------------------


def started_apart(ask: Ask, span: Span | None, shape: tuple[int, ...]) -> Edits:
    """Random values in the place of one number: `xavier_uniform_` for `constant_`, `randn` for `zeros`."""
    text, statement = statement_at(ask, span)
    if text is None or statement is None or len(shape) < 2:
        return ()
    calls = [
        node for node in ast.walk(statement) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    for call in calls:
        function = call.func
        if not isinstance(function, ast.Attribute):
            continue
        if function.attr in _UNIFORM and ast.unparse(function.value).rpartition(".")[2] == "init" and call.args:
            code = f"{text.source(function.value)}.xavier_uniform_({text.source(call.args[0])})"
            return (text.replaced(call, code),)
        if function.attr in ("zeros", "ones") and text.source(function.value) == text.torch:
            return text.renamed(function, "randn")
    return ()


def straight_through(ask: Ask, span: Span | None) -> Edits:
    """`x + (torch.round(x) - x).detach()` for `torch.round(x)`: its value, and a derivative of 1."""
    text = ask(text_of, span.file) if span is not None else None
    call = text.at(span, ast.Call) if text is not None and span is not None else None
    if text is None or call is None or not isinstance(call.func, ast.Attribute) or call.func.attr not in _FLAT:
        return ()
    library = text.source(call.func.value) == text.torch
    argument = (call.args[0] if len(call.args) == 1 else None) if library else call.func.value
    if argument is None or call.keywords or (call.args and not library):
        return ()
    statement = text.statement(call)
    if not any(isinstance(node, ast.Call) for node in ast.walk(argument)):
        given = text.bracketed(argument)
        code = f"{text.source(argument)} + ({text.source(call)} - {given}).detach()"
        whole = isinstance(statement, (ast.Assign, ast.Return)) and statement.value is call
        return (text.replaced(call, code if whole else f"({code})"),)
    if not isinstance(statement, ast.Assign) or statement.value is not call or len(statement.targets) != 1:
        return ()
    target = statement.targets[0]
    if not isinstance(target, (ast.Name, ast.Attribute)):
        return ()
    name = text.source(target)
    again = f"{text.torch}.{call.func.attr}({name})" if library else f"{name}.{call.func.attr}()"
    behind = text.after(statement, f"{name} = {name} + ({again} - {name}).detach()")
    return (text.replaced(call, text.source(argument)), *behind) if behind else ()


def drawn_without_history(ask: Ask, spans: Sequence[Span | None]) -> Edits:
    """`sample` for `rsample` where one line of these draws."""
    for span in spans:
        text = ask(text_of, span.file) if span is not None else None
        call = text.at(span, ast.Call) if text is not None and span is not None else None
        function = call.func if call is not None else None
        if text is not None and isinstance(function, ast.Attribute) and function.attr == "rsample":
            return text.renamed(function, "sample")
    return ()


def swapped(ask: Ask, span: Span | None) -> Edits:
    """The first two axes moved, in the place of a method that only gives the shape they are to have."""
    text = ask(text_of, span.file) if span is not None else None
    call = text.at(span, ast.Call) if text is not None and span is not None else None
    if text is None or call is None or not isinstance(call.func, ast.Attribute):
        return ()
    owner = call.func.value
    if call.func.attr not in ("view", "reshape") or text.source(owner) == text.torch:
        return ()
    return (text.replaced(call, f"{text.source(owner)}.transpose(0, 1).contiguous()"),)


def by_sample(ask: Ask, span: Span | None) -> Edits:
    """`batch_first=True` for the only recurrent layer of a file, whose outputs nobody takes by their first axis."""
    text, statement = statement_at(ask, span)
    if text is None or statement is None or not isinstance(statement, ast.Assign):
        return ()
    made = [
        node
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("GRU", "LSTM", "RNN")
    ]
    if len(made) != 1 or any(keyword.arg in ("batch_first", None) for keyword in made[0].keywords):
        return ()
    target = statement.targets[0]
    outputs = target.elts[0] if isinstance(target, ast.Tuple) else target
    home = next(text.around(statement, *_FUNCTIONS), text.tree)
    for node in ast.walk(home):
        taken = isinstance(node, ast.Subscript) and text.source(node.value) == text.source(outputs)
        if isinstance(node, ast.Subscript) and taken and not isinstance(node.slice, ast.Tuple):
            return ()
    return text.with_keyword(made[0], "batch_first", "True")
