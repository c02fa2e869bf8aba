"""Mends of who holds what: what an optimizer is given, when it is made, and lists of one and the same module."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Optimizer, Run, Span, Tensor
from gradscope.graph.rewriting import Edits, Text, statement_at, text_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)
_BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef)


def given_too(ask: Ask, optimizer: Optimizer, missing: Sequence[Tensor]) -> Edits:
    """What an optimizer lacks, among what it is given, or in a group of its own once there is what it lacks."""
    text, statement = statement_at(ask, optimizer.made)
    call = text.at(optimizer.made, ast.Call) if text is not None and optimizer.made is not None else None
    if text is None or statement is None or call is None or not call.args or isinstance(statement, _BLOCKS):
        return ()
    whole = _modules(ask.run, missing)
    if whole is None:
        return ()
    places = [_reached(text, statement, name) for name in whole]
    if not all(places) or not whole:
        return ()
    found = [place for place in places if place is not None]
    added = [
        code if tensor else f"*{code}.parameters()" for (code, _), tensor in zip(found, whole.values(), strict=True)
    ]
    if all(made.lineno < statement.lineno for _, made in found):
        mended = _with_more(text, call, added)
        if mended:
            return mended
    target = _target(text, statement)
    if target is None:
        return ()
    groups = [
        f'{target}.add_param_group({{"params": {code if tensor else f"{code}.parameters()"}}})'
        for (code, _), tensor in zip(found, whole.values(), strict=True)
    ]
    last = max((statement, *(made for _, made in found)), key=lambda each: each.lineno)
    return text.after(last, *groups) if last in text.block(statement) else ()


def _modules(run: Run, missing: Sequence[Tensor]) -> dict[str, bool] | None:
    """The largest modules of which an optimizer holds nothing, or the tensors themselves, and which of the two.

    Frozen parameters do not matter: they get no gradient.
    """
    lacking = {tensor.id for tensor in missing}
    held = {number for optimizer in run.optimizers for number in optimizer.tensors}
    found: dict[str, bool] = {}
    for tensor in missing:
        full = _full_name(tensor)
        if not full or "#" in full or "[" in full:
            return None
        parts = full.split(".")
        root = tensor.module.count(".") + 1 if tensor.module is not None else len(parts)
        for count in range(root, len(parts)):
            path = ".".join(parts[:count])
            inside = [other for other in run.tensors if _full_name(other).startswith(f"{path}.")]
            if all(other.id in lacking or not other.requires_grad or other.id not in held for other in inside):
                found[path] = False
                break
        else:
            found[full] = True
    return found


def _full_name(tensor: Tensor) -> str:
    """The name of a tensor with that of its root module in front."""
    name, root = tensor.name or "", tensor.module
    return name if root is None or not name or name.startswith(f"{root}.") else f"{root}.{name}"


def _reached(text: Text, place: ast.stmt, path: str) -> tuple[str, ast.stmt] | None:
    """How a thing is called at a place, and the statement of its block, or outside of its function, that makes it.

    What is `gan.critic` outside may be `self.critic` in a method.
    """
    home = next(text.around(place, *_FUNCTIONS), text.tree)
    root = path.split(".")[0]
    for node in _stores(home):
        if isinstance(node, ast.Name) and node.id == root and (made := text.statement(node)) is not None:
            around = [made, *(parent for parent in text.around(made, ast.stmt) if isinstance(parent, ast.stmt))]
            outer = next((each for each in around if each in text.block(place)), None)
            return (path, outer) if outer is not None else None
    owner = next(text.around(place, ast.ClassDef), None)
    parts = path.split(".")
    for count in range(len(parts)):
        name = f"self.{parts[count]}"
        for node in _stores(owner) if owner is not None else ():
            if isinstance(node, ast.Attribute) and text.source(node) == name:
                made = text.statement(node)
                if made is not None:
                    return ".".join([name, *parts[count + 1 :]]), made
    return _in_an_object(text, place, path)


def _in_an_object(text: Text, place: ast.stmt, path: str) -> tuple[str, ast.stmt] | None:
    """`session.balance` for what the class of the object `session` calls `self.balance`."""
    root = f"self.{path.split('.')[0]}"
    classes = {
        owner.name
        for node in _stores(text.tree)
        if isinstance(node, ast.Attribute) and text.source(node) == root
        for owner in text.around(node, ast.ClassDef)
        if isinstance(owner, ast.ClassDef)
    }
    made = [
        (target.id, statement)
        for statement in text.block(place)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
        if ast.unparse(statement.value.func) in classes
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]
    return (f"{made[0][0]}.{path}", made[0][1]) if len(made) == len(classes) == 1 else None


def _stores(node: ast.AST) -> Iterator[ast.Name | ast.Attribute]:
    for part in ast.walk(node):
        if isinstance(part, (ast.Name, ast.Attribute)) and isinstance(part.ctx, ast.Store):
            yield part


def _with_more(text: Text, call: ast.Call, added: Sequence[str]) -> Edits:
    """More elements in the list that an optimizer is given, or a list of what it is given and these."""
    argument, more = call.args[0], ", ".join(added)
    if isinstance(argument, ast.Name):
        home = next(text.around(argument, *_FUNCTIONS), text.tree)
        argument = _only_value(text, home, argument.id) or argument
    if isinstance(argument, (ast.List, ast.Tuple)):
        if not argument.elts or any(isinstance(element, ast.Dict) for element in argument.elts):
            return ()
        return text.appended_element(argument.elts[-1], f", {more}")
    last = argument.func.attr if isinstance(argument, ast.Call) and isinstance(argument.func, ast.Attribute) else None
    if last != "parameters":
        return ()
    return (text.replaced(argument, f"[*{text.source(argument)}, {more}]"),)


def _target(text: Text, statement: ast.stmt) -> str | None:
    """The variable or attribute that a statement gives a value."""
    if (
        not isinstance(statement, ast.Assign)
        or len(statement.targets) != 1
        or not isinstance(statement.value, ast.Call)
    ):
        return None
    target = statement.targets[0]
    return text.source(target) if isinstance(target, (ast.Name, ast.Attribute)) else None


# --- optimizers in time ----------------------------------------------------------------------------------------------


def made_after(ask: Ask, optimizer: Optimizer, changes: Sequence[Span]) -> Edits:
    """An optimizer made after a change of its model; made anew where it has stepped before."""
    text, made = statement_at(ask, optimizer.made)
    target = _target(text, made) if text is not None and made is not None else None
    if text is None or made is None or target is None:
        return ()
    block = text.block(made)
    below = block[block.index(made) + 1 :]
    for change in changes:
        again, statement = statement_at(ask, change)
        if again is not text or statement is None:
            continue
        around = [statement, *(parent for parent in text.around(statement, ast.stmt) if isinstance(parent, ast.stmt))]
        outer = next((each for each in around if any(each is other for other in below)), None)
        if outer is None:
            continue
        loop = next((each for each in around if isinstance(each, (ast.For, ast.While))), None)
        function = next(text.around(statement, *_FUNCTIONS), text.tree)
        if function is not next(text.around(made, *_FUNCTIONS), text.tree):
            continue
        between = below[: below.index(outer)]
        if any(_keeps(text, other, target) for other in between):
            return ()  # a scheduler, say, that would go on with the old one
        if loop is not None and outer is not statement and loop in around[: around.index(outer) + 1]:
            return text.after(statement, *text.source(made).split("\n")) if "\n" not in text.source(made) else ()
        if any(_names(text, other, target) for other in between):
            return text.after(outer, text.source(made)) if "\n" not in text.source(made) else ()
        return text.moved(made, after=outer)
    return ()


def loaded_in_place(ask: Ask, change: Span | None) -> Edits:
    """The values of a copy loaded into the model, in the place of `model = copy.deepcopy(best)`."""
    text, statement = statement_at(ask, change)
    if text is None or not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return ()
    call = statement.value
    if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith("deepcopy") or len(call.args) != 1:
        return ()
    target, source = statement.targets[0], call.args[0]
    if not isinstance(target, (ast.Name, ast.Attribute)) or not isinstance(source, (ast.Name, ast.Attribute)):
        return ()
    code = f"{text.source(target)}.load_state_dict({text.source(source)}.state_dict())"
    return (text.replaced(statement, code),) if text.source(target) != text.source(source) else ()


def _names(text: Text, node: ast.AST, name: str) -> bool:
    return any(isinstance(part, (ast.Name, ast.Attribute)) and text.source(part) == name for part in ast.walk(node))


def _keeps(text: Text, statement: ast.stmt, name: str) -> bool:
    """Whether a statement gives a variable something that is made with a thing of this name."""
    return isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call) and _names(text, statement, name)


def made_once(ask: Ask, optimizer: Optimizer) -> Edits:
    """An optimizer made before the outermost loop in which nothing that it is made of changes."""
    text, made = statement_at(ask, optimizer.made)
    if text is None or made is None or not isinstance(made, ast.Assign) or _target(text, made) is None:
        return ()
    used = {node.id for node in ast.walk(made.value) if isinstance(node, ast.Name)}
    place: ast.stmt | None = None
    for parent in text.around(made, ast.For, ast.While, ast.If, *_FUNCTIONS):
        if not isinstance(parent, (ast.For, ast.While)):
            break
        own = [node for node in ast.walk(parent) if node is not made.targets[0]]
        changed = {node.id for node in own if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        if not used.isdisjoint(changed):
            break
        place = parent
    return text.moved(made, before=place) if place is not None else ()


def multiplied(ask: Ask, span: Span | None) -> Edits:
    """`[layer() for _ in range(n)]` for `[layer()] * n`."""
    text = ask(text_of, span.file) if span is not None else None
    if text is None or span is None:
        return ()
    products = [
        node
        for node in ast.walk(text.tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Mult)
        and node.lineno <= span.line <= (node.end_lineno or node.lineno)
        and any(isinstance(side, ast.List) for side in (node.left, node.right))
    ]
    if len(products) != 1:
        return ()
    product = products[0]
    several, count = (
        (product.left, product.right) if isinstance(product.left, ast.List) else (product.right, product.left)
    )
    if not isinstance(several, ast.List) or len(several.elts) != 1:
        return ()
    made = several.elts[0]
    if isinstance(made, ast.Name):
        made = _call_that_made(text, product, made.id) or made
    if not isinstance(made, ast.Call):
        return ()
    return (text.replaced(product, f"[{text.source(made)} for _ in range({text.source(count)})]"),)


def _call_that_made(text: Text, place: ast.expr, name: str) -> ast.Call | None:
    """The call whose result a variable holds."""
    value = _only_value(text, next(text.around(place, *_FUNCTIONS), text.tree), name)
    return value if isinstance(value, ast.Call) else None


def _only_value(text: Text, home: ast.AST, name: str) -> ast.expr | None:
    """What a variable holds, where a function gives it one value only."""
    stores = [node for node in _stores(home) if isinstance(node, ast.Name) and node.id == name]
    statement = text.statement(stores[0]) if len(stores) == 1 else None
    return statement.value if isinstance(statement, ast.Assign) and statement.targets == stores else None
