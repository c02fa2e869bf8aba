"""Mends of the order of a step: what clears, differentiates, clips and steps is put in, moved or left out."""

from __future__ import annotations

import ast

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Optimizer, Span
from gradscope.graph.rewriting import Edits, Text, head, statement_at, text_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)


def cleared(ask: Ask, optimizer: Optimizer, backward: Span | None) -> Edits:
    """`zero_grad()` before the backward, or right after the step where several backwards lead to one step."""
    text, pass_ = statement_at(ask, backward)
    owner, stepping = _step_of(ask, optimizer)
    if text is None or pass_ is None or owner is None or stepping is None:
        return ()
    closure = _closure(ask, optimizer, pass_)
    if closure is not None:
        return text.before(head(closure), f"{owner}.zero_grad()")
    again = ask(text_of, optimizer.stepped.file) if optimizer.stepped is not None else None
    if again is None:
        return ()
    together = again.file == text.file and _shares_a_loop(text, pass_, stepping)
    if together and len(_backwards(text, _home(text, pass_))) == 1:
        return text.before(_outermost(text, pass_, stepping), f"{owner}.zero_grad()")
    return again.after(stepping, f"{owner}.zero_grad()")


def cleared_right_before(ask: Ask, optimizer: Optimizer) -> Edits:
    """`zero_grad()` before the latest backward that stands above a step, in the same block."""
    owner, stepping = _step_of(ask, optimizer)
    text = ask(text_of, optimizer.stepped.file) if optimizer.stepped is not None else None
    if text is None or owner is None or stepping is None:
        return ()
    block = text.block(stepping)
    above = block[: block.index(stepping)]
    passes = [other for other in above if _backwards(text, other) and isinstance(other, ast.Expr)]
    steps = [other for other in above if _steps(other)]
    passes = [other for other in passes if not steps or other.lineno > steps[-1].lineno]
    return text.before(passes[0], f"{owner}.zero_grad()") if passes else ()


def cleared_by_hand(ask: Ask, backward: Span | None, names: tuple[str, ...]) -> Edits:
    """`.grad = None` after the update by hand of each of these: where all updates stand in one block."""
    text, pass_ = statement_at(ask, backward)
    if text is None or pass_ is None:
        return ()
    found: dict[str, ast.stmt] = {}
    for node in ast.walk(_home(text, pass_)):
        if isinstance(node, ast.Attribute) and node.attr == "grad" and isinstance(node.ctx, ast.Load):
            statement = text.statement(node)
            if statement is not None and statement.lineno > pass_.lineno:
                found[text.source(node.value)] = statement
    if not found or (set(names) - set(found) and len(found) > 1):
        return ()
    blocks = {id(text.block(statement)) for statement in found.values()}
    last = max(found.values(), key=lambda statement: statement.lineno)
    if len(blocks) > 1 or isinstance(last, (ast.For, ast.While, ast.If, ast.With, ast.FunctionDef)):
        return ()
    return text.after(last, *(f"{name}.grad = None" for name in found))


# --- cleared too early -----------------------------------------------------------------------------------------------


def cleared_in_time(ask: Ask, clearing: Span | None, backward: Span | None, stepped: Span | None) -> Edits:
    """What clears gradients between a backward and the step: before the first backward, else after the step."""
    text, clear = statement_at(ask, clearing)
    if text is None or clear is None or not isinstance(clear, ast.Expr):
        return ()
    block = text.block(clear)
    place = block.index(clear)
    _, pass_ = statement_at(ask, backward)
    if pass_ is not None and any(pass_ is other for other in block[:place]):
        first = next(other for other in block[:place] if _backwards(text, other))
        return text.moved(clear, before=first)
    _, step = statement_at(ask, stepped)
    if step is not None and any(step is other for other in block[place:]):
        return text.moved(clear, after=step)
    loop = next(text.around(clear, ast.For, ast.While), None)
    if pass_ is None or not isinstance(loop, (ast.For, ast.While)) or step is None or pass_ not in block:
        return ()
    return text.moved(clear, before=loop) if step not in set(ast.walk(loop)) else ()


def stepped_after(ask: Ask, stepped: Span | None, backward: Span | None) -> Edits:
    """A step behind a backward that stands below it in the same block."""
    text, step = statement_at(ask, stepped)
    _, pass_ = statement_at(ask, backward)
    if text is None or step is None or pass_ is None or not isinstance(step, ast.Expr):
        return ()
    block = text.block(step)
    below = [other for other in block[block.index(step) + 1 :] if other is pass_]
    return text.moved(step, after=below[0]) if below else ()


# --- backward and step are missing -----------------------------------------------------------------------------------


def differentiated(ask: Ask, optimizer: Optimizer, name: str, made: Span) -> Edits:
    """`loss.backward()` before the step, or before the closure of the step returns."""
    text, step = statement_at(ask, optimizer.stepped)
    call = _step_call(step) if step is not None else None
    if text is None or step is None or call is None or not isinstance(call.func, ast.Attribute):
        return ()
    if not all(part.isidentifier() for part in name.split(".")):
        return ()
    again, statement = statement_at(ask, made)
    if again is text and statement is not None and _closure(ask, optimizer, statement) is not None:
        last = text.block(statement)[-1]
        stored = _is_stored(text, _home(text, statement), name)
        return text.before(last, f"{name}.backward()") if isinstance(last, ast.Return) and stored else ()
    scaler = text.source(call.func.value) if call.args else None
    if (scaler is not None and "scaler" not in scaler) or not _is_stored(text, _home(text, step), name):
        return ()  # the closure is there, and computes its loss elsewhere
    return text.before(step, f"{scaler}.scale({name}).backward()" if scaler else f"{name}.backward()")


def stepped(ask: Ask, optimizer: Optimizer, backward: Span | None) -> Edits:
    """`optimizer.step()` after backward; the step that stands in a branch which is never taken goes there."""
    text, pass_ = statement_at(ask, backward)
    if text is None or pass_ is None or optimizer.made is None:
        return ()
    owner = _variable(ask, optimizer.made, text, pass_)
    if owner is None or not isinstance(pass_, ast.Expr):
        return ()
    waiting = [
        statement
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Expr) and (statement := node) and _is_step_of(text, statement, owner)
    ]
    if waiting:
        (step, *others) = waiting
        branch = text.parents[step]
        alone = len(text.block(step)) == 1 and isinstance(branch, ast.If) and step in branch.orelse
        if others or not alone or _home(text, step) is not _home(text, pass_):
            return ()
        return (*text.after(pass_, f"{owner}.step()"), *_without_else(text, step))
    scaled = _scaler(pass_)
    if scaled is not None:
        return text.after(pass_, f"{scaled}.step({owner})", f"{scaled}.update()")
    return text.after(pass_, f"{owner}.step()")


def _without_else(text: Text, step: ast.stmt) -> Edits:
    """The `else` of a branch less, with the only statement in it."""
    branch = text.parents[step]
    if not isinstance(branch, ast.If):
        return ()
    first = (branch.body[-1].end_lineno or branch.body[-1].lineno) + 1
    return text.lines_left_out(first, step.end_lineno or step.lineno)


# --- clipping --------------------------------------------------------------------------------------------------------


def clipped_in_time(ask: Ask, clip: Span | None, backward: Span | None) -> Edits:
    """A clip behind the backward of its block."""
    text, statement = statement_at(ask, clip)
    _, pass_ = statement_at(ask, backward)
    if text is None or statement is None or pass_ is None or _scaler(pass_) is not None:
        return ()
    if not isinstance(statement, ast.Expr) or not any(pass_ is other for other in text.block(statement)):
        return ()
    return text.moved(statement, after=pass_)


def unscaled(ask: Ask, clip: Span | None, stepped: Span | None, divided: Span | None, call: str) -> Edits:
    """The call that divides by the scale goes before a clip, where the step is taken in the same function."""
    text, statement = statement_at(ask, clip)
    _, step = statement_at(ask, stepped)
    _, unscaling = statement_at(ask, divided)
    if text is None or statement is None or step is None or step not in set(ast.walk(_home(text, statement))):
        return ()
    if unscaling is None or unscaling is step:  # the step does it
        return text.before(statement, call)
    same = any(unscaling is other for other in text.block(statement))
    return text.moved(unscaling, before=statement) if same else ()


# --- freezing --------------------------------------------------------------------------------------------------------


def frozen_without_gradient(ask: Ask, span: Span | None, *, masked: bool) -> Edits:
    """No gradient in the place of one of zeros, and none left where something is frozen: no step moves it then."""
    text, statement = statement_at(ask, span)
    if text is None or statement is None:
        return ()
    if masked:
        gradient = _zeroed(statement)
        return (text.replaced(statement, f"{text.source(gradient)} = None"),) if gradient is not None else ()
    if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Attribute):
        off = target.attr == "requires_grad" and _is_false(statement.value)
        return text.after(statement, f"{text.source(target.value)}.grad = None") if off else ()
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "requires_grad_":
        return ()
    if not all(map(_is_false, [*call.args, *(keyword.value for keyword in call.keywords)])):
        return ()
    owner = call.func.value
    loop = next(text.around(statement, ast.For), None)
    each = isinstance(loop, ast.For) and "parameters()" in text.source(loop.iter) and isinstance(owner, ast.Name)
    tensor = each or (isinstance(owner, ast.Attribute) and owner.attr in ("weight", "bias"))
    return text.after(statement, f"{text.source(owner)}.{'grad = None' if tensor else 'zero_grad()'}")


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _zeroed(statement: ast.stmt) -> ast.Attribute | None:
    """The gradient that a statement sets to zero throughout: `w.grad *= 0`, `w.grad.zero_()`."""
    if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Mult):
        zero = isinstance(statement.value, ast.Constant) and statement.value.value == 0
        node: ast.expr | None = statement.target if zero else None
    else:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return None
        zeros = all(isinstance(argument, ast.Constant) and argument.value == 0 for argument in call.args)
        named = call.func.attr == "zero_" or (call.func.attr in ("mul_", "fill_") and call.args)
        node = call.func.value if zeros and named else None
    while isinstance(node, ast.Attribute) and node.attr == "data":
        node = node.value
    return node if isinstance(node, ast.Attribute) and node.attr == "grad" else None


# --- where things stand ----------------------------------------------------------------------------------------------


def _step_of(ask: Ask, optimizer: Optimizer) -> tuple[str | None, ast.stmt | None]:
    """What the program calls an optimizer where it steps, and the statement that does."""
    text, statement = statement_at(ask, optimizer.stepped)
    call = _step_call(statement) if statement is not None else None
    if text is None or call is None or not isinstance(call.func, ast.Attribute):
        return None, None
    owner: ast.expr = call.func.value
    if call.args and "scaler" in text.source(owner):  # `scaler.step(optimizer)`
        owner = call.args[0]
    return (text.source(owner), statement) if isinstance(owner, (ast.Name, ast.Attribute)) else (None, None)


def _step_call(statement: ast.stmt) -> ast.Call | None:
    """The call of `step` in a statement that is no block."""
    if isinstance(statement, (ast.For, ast.While, ast.If, ast.With, ast.FunctionDef)):
        return None
    calls = (node for node in ast.walk(statement) if isinstance(node, ast.Call))
    return next((call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "step"), None)


def _steps(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and _step_call(statement) is not None


def _is_step_of(text: Text, statement: ast.stmt, owner: str) -> bool:
    call = _step_call(statement)
    return call is not None and isinstance(call.func, ast.Attribute) and text.source(call.func.value) == owner


def _scaler(pass_: ast.stmt) -> str | None:
    """What scales the loss of a backward: `scaler` of `scaler.scale(loss).backward()`."""
    for node in ast.walk(pass_):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "scale":
            return ast.unparse(node.func.value)
    return None


def _closure(ask: Ask, optimizer: Optimizer, pass_: ast.stmt) -> ast.FunctionDef | None:
    """The closure of a step in which a backward stands."""
    text, step = statement_at(ask, optimizer.stepped)
    call = _step_call(step) if step is not None else None
    if text is None or call is None or not call.args or not isinstance(call.args[0], ast.Name):
        return None
    function = next(text.around(pass_, ast.FunctionDef), None) if pass_ in text.parents else None
    return function if isinstance(function, ast.FunctionDef) and function.name == call.args[0].id else None


def _home(text: Text, node: ast.AST) -> ast.AST:
    """The function in which a node stands, or the module."""
    return next(text.around(node, *_FUNCTIONS), text.tree)


def _shares_a_loop(text: Text, one: ast.stmt, other: ast.stmt) -> bool:
    """Whether two statements run as often as each other, as far as loops tell."""
    same = _home(text, one) is _home(text, other)
    return same and next(text.loops(one), None) is next(text.loops(other), None)


def _outermost(text: Text, statement: ast.stmt, other: ast.stmt) -> ast.stmt:
    """What stands around a statement in the block of another one, or the statement itself."""
    block = text.block(other)
    for parent in text.around(statement, ast.stmt):
        if isinstance(parent, ast.stmt) and any(parent is each for each in block):
            return statement if isinstance(parent, (ast.If, ast.FunctionDef)) else parent
    return statement


def _backwards(text: Text, node: ast.AST) -> list[ast.Call]:
    """The calls of `backward` in a node."""
    calls = (part for part in ast.walk(node) if isinstance(part, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "backward"]


def _is_stored(text: Text, function: ast.AST, name: str) -> bool:
    """Whether a function gives a variable its value, or is given it."""
    if any(isinstance(node, ast.arg) and node.arg == name for node in ast.walk(function)):
        return True
    return any(
        isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store) and text.source(node) == name
        for node in ast.walk(function)
    )


def _variable(ask: Ask, made: Span, text: Text, place: ast.stmt) -> str | None:
    """The variable that an optimizer was put in, where it means the same at another place of the file."""
    other, statement = statement_at(ask, made)
    if other is not text or not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return None
    if len(statement.targets) != 1:
        return None
    target = statement.targets[0]
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        classes = [next(text.around(node, ast.ClassDef), None) for node in (statement, place)]
        return text.source(target) if classes[0] is classes[1] else None
    home = _home(text, statement)
    if not isinstance(target, ast.Name) or not (home is text.tree or home is _home(text, place)):
        return None
    hidden = home is not _home(text, place) and _is_stored(text, _home(text, place), target.id)
    return None if hidden else target.id
