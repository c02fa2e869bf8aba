"""Mends of leaves: parameters are registered, require grad, and stay what the program optimizes and reads."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Edit, Optimizer, Span
from gradscope.graph.rewriting import Edits, Text, called, node_at, texts

# --- registered ------------------------------------------------------------------------------------------------------


def registered(ask: Ask, span: Span | None, names: Sequence[str]) -> Edits:
    """What a module keeps in a plain list, dict or attribute, kept where `parameters()` finds it."""
    found = node_at(ask, span, ast.stmt)
    if found is None:
        return ()
    text, statement = found
    if text.nn is None or not names:
        return ()
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value.func
        if isinstance(call, ast.Attribute) and call.attr == "register_buffer":
            return _buffer_as_parameter(text, statement.value)
        made = (
            _empty(text, statement, call.value) if isinstance(call, ast.Attribute) and call.attr == "append" else None
        )
        return _contained(text, made.value, names) if made is not None else ()
    if not isinstance(statement, ast.Assign) or not _is_own(statement.targets[0]):
        return ()
    if all("[" in name for name in names):
        return _contained(text, statement.value, names)
    if any("[" in name for name in names) or len(names) > 1:
        return ()
    made_by = statement.value
    return (text.replaced(made_by, f"{text.nn}.Parameter({text.source(made_by)})"),)


def _is_own(target: ast.expr) -> bool:
    return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"


def _contained(text: Text, value: ast.expr, names: Sequence[str]) -> Edits:
    """A list or dict as one that is registered, of modules or of parameters."""
    modules = {"." in name.partition("[")[2].partition("]")[2] for name in names}
    nested = any(name.count("[") > 1 for name in names)
    if len(modules) != 1 or nested:
        return ()
    of = "Module" if True in modules else "Parameter"
    if isinstance(value, (ast.List, ast.ListComp, ast.Tuple)):
        return (text.replaced(value, f"{text.nn}.{of}List({text.source(value)})"),)
    keys = value.keys if isinstance(value, ast.Dict) else [value.key] if isinstance(value, ast.DictComp) else []
    if keys and all(_is_text(key) for key in keys):
        return (text.replaced(value, f"{text.nn}.{of}Dict({text.source(value)})"),)
    return ()


def _is_text(key: ast.expr | None) -> bool:
    """Whether a key is a string: the dicts of `torch.nn` take no others."""
    return isinstance(key, ast.JoinedStr) or (isinstance(key, ast.Constant) and isinstance(key.value, str))


def _empty(text: Text, statement: ast.stmt, kept_in: ast.expr) -> ast.Assign | None:
    """Where a list to which something is appended begins, empty, in the same method."""
    method = next(text.around(statement, ast.FunctionDef), None)
    for node in ast.walk(method) if method is not None and _is_own(kept_in) else ():
        if isinstance(node, ast.Assign) and text.source(node.targets[0]) == text.source(kept_in):
            return node if isinstance(node.value, ast.List) else None
    return None


def _buffer_as_parameter(text: Text, call: ast.Call) -> Edits:
    """`self.x = nn.Parameter(value)` for `self.register_buffer("x", value)`."""
    if len(call.args) != 2 or call.keywords or not isinstance(call.func, ast.Attribute):
        return ()
    name, value = call.args
    if not isinstance(name, ast.Constant) or not isinstance(name.value, str) or not name.value.isidentifier():
        return ()
    owner = text.source(call.func.value)
    return (text.replaced(call, f"{owner}.{name.value} = {text.nn}.Parameter({text.source(value)})"),)


# --- requiring grad --------------------------------------------------------------------------------------------------


def asked_by_method(ask: Ask) -> Edits:
    """`module.requires_grad_(True)` for the only line that sets the attribute `requires_grad` of a module."""
    found = [
        (text, node)
        for text in ask(texts)
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Assign) and _switches_on(text, node)
    ]
    if len(found) != 1:
        return ()
    text, node = found[0]
    target = node.targets[0]
    owner = text.source(target.value) if isinstance(target, ast.Attribute) else ""
    return (text.replaced(node, f"{owner}.requires_grad_(True)"),)


def _switches_on(text: Text, node: ast.Assign) -> bool:
    """Whether a statement sets `requires_grad` to True, of something else than a parameter that a loop goes through."""
    target = node.targets[0]
    if not isinstance(target, ast.Attribute) or target.attr != "requires_grad" or ast.unparse(node.value) != "True":
        return False
    loops = [loop for loop in text.around(node, ast.For) if isinstance(loop, ast.For)]
    looped = {part.id for loop in loops for part in ast.walk(loop.target) if isinstance(part, ast.Name)}
    over = " ".join(text.source(loop.iter) for loop in loops)
    return not (ast.unparse(target.value) in looped and "parameters()" in over) and not ast.unparse(
        target.value
    ).endswith((".weight", ".bias"))


def unfrozen_when_made(ask: Ask, span: Span | None) -> Edits:
    """`freeze=False` for an embedding that is made of vectors."""
    found = node_at(ask, span, ast.Call)
    if found is None:
        return ()
    text, call = found
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "from_pretrained":
        return ()
    return text.with_keyword(call, "freeze", "False") if len(call.args) < 2 else ()


def unfrozen_for(ask: Ask, module: str | None, backward: Span | None) -> Edits:
    """`module.requires_grad_(True)` at the head of the block whose loss is to train it."""
    found = node_at(ask, backward, ast.stmt)
    if found is None or module is None:
        return ()
    text, statement = found
    scope = next(text.around(statement, ast.FunctionDef), None) or text.tree
    known = {
        text.source(node)
        for node in ast.walk(scope)
        if isinstance(node, (ast.Name, ast.Attribute)) and node.lineno <= statement.lineno
    }
    said = next((name for name in (module, f"self.{module}") if name in known), None)
    if said is None and any(isinstance(n, ast.Name) and n.id == module for n in ast.walk(text.tree)):
        said = module
    return text.before(text.block(statement)[0], f"{said}.requires_grad_(True)") if said is not None else ()


def unfrozen_before(ask: Ask, optimizer: Optimizer) -> Edits:
    """`module.requires_grad_(True)` before the line that gives an optimizer all parameters of that module."""
    span = optimizer.made
    found = node_at(ask, span, ast.Call)
    if found is None:
        return ()
    text, call = found
    given = next(iter(call.args), None)
    if not isinstance(given, ast.Call) or not isinstance(given.func, ast.Attribute):
        return ()
    statement = text.statement(call)
    if given.func.attr != "parameters" or given.args or statement is None:
        return ()
    return text.before(statement, f"{text.source(given.func.value)}.requires_grad_(True)")


# --- leaves ----------------------------------------------------------------------------------------------------------


def converted_inside(ask: Ask, span: Span | None) -> Edits:
    """`nn.Parameter(value.to(device))` for `nn.Parameter(value).to(device)`."""
    found = node_at(ask, span, ast.Call)
    if found is None:
        return ()
    text, call = found
    if not isinstance(call.func, ast.Attribute):
        return ()
    inner, link = call.func.value, text.link(call)
    if not isinstance(inner, ast.Call) or called(inner) != "Parameter" or link is None:
        return ()
    if len(inner.args) != 1 or link.line != (link.end_line or link.line):
        return ()
    moved = text.lines[link.line - 1][(link.column or 1) - 1 : (link.end_column or 1) - 1]
    value = text.replaced(inner.args[0], text.bracketed(inner.args[0]) + moved)
    return value, Edit(link, "")


def leaf_again(ask: Ask, span: Span | None) -> Edits:
    """The result of an operation as a leaf: what was asked to require grad before it is asked after it."""
    found = node_at(ask, span, ast.Assign)
    if found is None:
        return ()
    text, statement = found
    asked = _asked_before(text, statement)
    if asked is not None:
        return text.moved(asked, after=statement)
    value = statement.value
    for call in ast.walk(value):
        if isinstance(call, ast.Call) and any(keyword.arg == "requires_grad" for keyword in call.keywords):
            if call is value:
                return ()
            less = text.without_keyword(call, "requires_grad")
            return (*less, *_asked(text, value))
    if isinstance(value, ast.ListComp):
        return text.appended(value.elt, ".detach().clone().requires_grad_()")
    return ()


def _asked(text: Text, value: ast.expr) -> Edits:
    """`.requires_grad_()` behind a value; brackets are put around it by edits of their own."""
    span = text.span(value)
    end = Span(text.file, span.end_line or span.line, span.end_column, span.end_line, span.end_column)
    if not isinstance(value, ast.BinOp):
        return text.appended(value, ".requires_grad_()")
    start = Span(text.file, span.line, span.column, span.line, span.column)
    return Edit(start, "("), Edit(end, ").requires_grad_()")


def _asked_before(text: Text, statement: ast.Assign) -> ast.stmt | None:
    """The statement before this one of its block that asks what it gives a new value to require grad."""
    names = {text.source(part) for target in statement.targets for part in _parts(target)}
    block = text.block(statement)
    for other in block[: block.index(statement)]:
        if isinstance(other, ast.Assign) and isinstance(other.targets[0], ast.Attribute):
            owner, asks = other.targets[0].value, other.targets[0].attr == "requires_grad"
        elif isinstance(other, ast.Expr) and isinstance(other.value, ast.Call):
            function = other.value.func
            asks = isinstance(function, ast.Attribute) and function.attr == "requires_grad_"
            owner = function.value if isinstance(function, ast.Attribute) else function
        else:
            continue
        if asks and text.source(owner) in names:
            return other
    return None


def _parts(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]


def updated_in_place(ask: Ask, span: Span | None) -> Edits:
    """`w -= lr * w.grad` for `w = w - lr * w.grad` without grad mode, with those beside it; each clears its gradient.

    A new tensor begins without a gradient, and one that stays the same keeps it: so it has to be cleared.
    """
    found = node_at(ask, span, ast.Assign)
    if found is None:
        return ()
    text, statement = found
    around = next(text.around(statement, ast.With), None)
    if not isinstance(around, ast.With) or "no_grad" not in ast.unparse(around.items[0]):
        return ()
    block = text.block(statement)
    updates = [other for other in block if isinstance(other, ast.Assign) and _is_update(text, other)]
    if statement not in updates:
        return ()
    edits: Edits = ()
    for update in updates:
        value, target = update.value, text.source(update.targets[0])
        if isinstance(value, ast.BinOp):
            sign = "-" if isinstance(value.op, ast.Sub) else "+"
            edits += (text.replaced(update, f"{target} {sign}= {text.source(value.right)}"),)
    clears = [f"{text.source(update.targets[0])}.grad = None" for update in updates]
    return (*edits, *text.after(block[-1], *clears)) if text.is_alone(block[-1]) else ()


def _is_update(text: Text, statement: ast.Assign) -> bool:
    target, value = text.source(statement.targets[0]), statement.value
    difference = isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Sub, ast.Add))
    return (
        isinstance(value, ast.BinOp)
        and difference
        and text.source(value.left) == target
        and f"{target}.grad" in text.source(value.right)
    )
