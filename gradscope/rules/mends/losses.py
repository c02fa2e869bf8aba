"""Mends of what a loss is given: an activation less, the same shapes, weights before the mean, another axis."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Operation, Span
from gradscope.graph.naming import is_library, short_name
from gradscope.graph.rewriting import Edits, Text, text_of

_CLASSES = {
    "softmax": ("Softmax",),
    "sigmoid": ("Sigmoid",),
    "log_softmax": ("LogSoftmax",),
    "relu": ("ReLU",),
    "tanh": ("Tanh",),
    "softplus": ("Softplus",),
    "elu": ("ELU",),
    "gelu": ("GELU",),
    "silu": ("SiLU",),
    "dropout": ("Dropout",),
}


def _at(ask: Ask, span: Span | None) -> tuple[Text | None, ast.expr | None]:
    """The call or the product, quotient, sum or difference at a place, with its text."""
    text = ask(text_of, span.file) if span is not None else None
    return text, text.at(span, ast.Call, ast.BinOp) if text is not None and span is not None else None


# --- an activation less ----------------------------------------------------------------------------------------------


def left_out(ask: Ask, operation: Operation) -> Edits:
    """An activation less: its call becomes what it was given, its module goes from the list of layers."""
    text, node = _at(ask, operation.span)
    name = short_name(operation.name)
    if text is None or operation.span is None:
        return ()
    if isinstance(node, ast.Call):
        given = _given(text, node, name)
        if given is not None:
            return (text.replaced(node, text.bracketed(given)),)
    for file in ask.run.whole:
        layers = ask(text_of, file)
        found = list(_layers(layers, operation, name)) if layers is not None else []
        if layers is not None and len(found) == 1:
            return _without_layer(layers, found[0])
    return ()


def _given(text: Text, call: ast.Call, name: str) -> ast.expr | None:
    """What `torch.relu(x)`, `x.relu()` and, where `self.act` is made as one, `self.act(x)` are given."""
    function = call.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called == name:
        if isinstance(function, ast.Attribute) and not is_library(function.value) and not _is_module(function.value):
            return function.value
        return call.args[0] if call.args else None
    if isinstance(function, ast.Call):  # `nn.Softmax(dim=1)(x)`
        kind = ast.unparse(function.func).rpartition(".")[2]
        return call.args[0] if kind in _CLASSES.get(name, ()) and len(call.args) == 1 else None
    if not isinstance(function, (ast.Attribute, ast.Name)) or len(call.args) != 1:
        return None
    kinds = [
        ast.unparse(node.value.func).rpartition(".")[2]
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if any(text.source(target) == text.source(function) for target in node.targets)
    ]
    return call.args[0] if kinds and all(kind in _CLASSES.get(name, ()) for kind in kinds) else None


def _is_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("F", "functional", "nn", "torch")


def _layers(text: Text, operation: Operation, name: str) -> Iterator[ast.Call]:
    """The calls that may have made the module of an operation: in a `Sequential` those at its place, or at the end."""
    kinds = _CLASSES.get(name, ())
    place = (operation.module or "").rpartition(".")[2]
    for node in ast.walk(text.tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in kinds:
            continue
        parent = text.parents[node]
        if isinstance(parent, ast.Call) and ast.unparse(parent.func).rpartition(".")[2] == "Sequential":
            plain = not any(isinstance(argument, ast.Starred) for argument in parent.args)
            if node is parent.args[-1] and (not plain or str(len(parent.args) - 1) == place):
                yield node
        elif isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr == "append":
            loops = text.around(parent, ast.For, ast.While, ast.FunctionDef)
            if not isinstance(next(loops, None), (ast.For, ast.While)) and isinstance(text.parents[parent], ast.Expr):
                yield node


def _without_layer(text: Text, layer: ast.Call) -> Edits:
    parent = text.parents[layer]
    if not isinstance(parent, ast.Call):
        return ()
    if isinstance(parent.func, ast.Attribute) and parent.func.attr == "append":
        statement = text.statement(parent)
        return text.left_out(statement) if statement is not None else ()
    return text.without_argument(parent, layer) if len(parent.args) > 1 else ()


def taken_as_probabilities(ask: Ask, loss: Operation) -> Edits:
    """`nll_loss` of the logarithm in the place of `cross_entropy`, where probabilities are what the model gives."""
    text, node = _at(ask, loss.span)
    if text is None or not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return ()
    if node.func.attr != "cross_entropy" or not node.args or text.torch is None:
        return ()
    if any(keyword.arg == "label_smoothing" for keyword in node.keywords):
        return ()
    argument = node.args[0]
    return (
        *text.renamed(node.func, "nll_loss"),
        text.replaced(argument, f"{text.torch}.log({text.source(argument)} + 1e-8)"),
    )


def as_logarithms(ask: Ask, softmax: Operation) -> Edits:
    """`log_softmax` in the place of `softmax`: the call, or the module that was made."""
    text, node = _at(ask, softmax.span)
    if short_name(softmax.name) != "softmax" or text is None:
        return ()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "softmax":
        return text.renamed(node.func, "log_softmax") if _given(text, node, "softmax") is not None else ()
    made = [
        (layers, call)
        for file in ask.run.whole
        if (layers := ask(text_of, file)) is not None
        for call in ast.walk(layers.tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "Softmax"
    ]
    if len(made) != 1 or not isinstance(made[0][1].func, ast.Attribute):
        return ()
    return made[0][0].renamed(made[0][1].func, "LogSoftmax")


# --- shapes ----------------------------------------------------------------------------------------------------------


def squeezed(ask: Ask, span: Span | None, a: tuple[int, ...], b: tuple[int, ...]) -> Edits:
    """`.squeeze(-1)` behind the operand that has one axis more, of one place, at its end."""
    text, node = _at(ask, span)
    if text is None or node is None:
        return ()
    operands = _operands(node)
    if len(operands) != 2:
        return ()
    for operand, own, other in ((operands[0], a, b), (operands[1], b, a)):
        if own == (*other, 1) and not isinstance(operand, ast.Constant):
            return text.appended(operand, ".squeeze(-1)")
    return ()


def _operands(node: ast.expr) -> list[ast.expr]:
    """The two that an operator, a loss or a method of one operand takes."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if not isinstance(node, ast.Call) or any(isinstance(argument, ast.Starred) for argument in node.args):
        return []
    method = (
        isinstance(node.func, ast.Attribute) and node.func.attr in ("sub", "mul") and not is_library(node.func.value)
    )
    if method and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
        return [node.func.value, node.args[0]]
    named = {keyword.arg: keyword.value for keyword in node.keywords}
    given = [*node.args, *(named[name] for name in ("input", "target") if name in named)]
    return given[:2]


def unreduced(ask: Ask, reduction: Operation, shape: tuple[int, ...], weights: tuple[int, ...]) -> Edits:
    """`reduction="none"` for a loss, or its `mean` left out, where the weights have the shape of what it is made of."""
    name = short_name(reduction.name)
    text, node = _at(ask, reduction.span)
    classes = ops.is_a(reduction, ops.LOSSES_OF_CLASSES)
    if text is None or not isinstance(node, ast.Call) or (shape[:1] if classes else shape) != weights:
        return ()
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr in ("mean", "sum") and name == function.attr:
        link = text.link(node) if not node.args and not node.keywords and not is_library(function.value) else None
        return text.cut_out(link) if link is not None else ()
    if name not in ops.LOSSES:
        return ()
    if isinstance(function, ast.Attribute) and function.attr == name:
        return text.with_keyword(node, "reduction", '"none"')
    made = [
        other.value
        for other in ast.walk(text.tree)
        if isinstance(other, ast.Assign) and any(text.source(t) == text.source(function) for t in other.targets)
    ]
    uses = sum(isinstance(n, ast.Call) and text.source(n.func) == text.source(function) for n in ast.walk(text.tree))
    if len(made) != 1 or not isinstance(made[0], ast.Call) or uses != 1:
        return ()
    return text.with_keyword(made[0], "reduction", '"none"')


# --- axes ------------------------------------------------------------------------------------------------------------


def along(ask: Ask, softmax: Operation, axis: int, dim: int) -> Edits:
    """A softmax along another axis: another `dim` for its call, or for the module that was made."""
    text, node = _at(ask, softmax.span)
    name = short_name(softmax.name)
    if text is None:
        return ()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
        place = 0 if not is_library(node.func.value) and not _is_module(node.func.value) else 1
        if len(node.args) > place:
            return (text.replaced(node.args[place], str(dim)),)
        return text.with_keyword(node, "dim", str(dim))
    kinds = _CLASSES.get(name, ())
    made = [
        (layers, call)
        for file in ask.run.whole
        if (layers := ask(text_of, file)) is not None
        for call in ast.walk(layers.tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in kinds
    ]
    fitting = [pair for pair in made if _dim(pair[1]) in (axis, None)]
    if len(fitting) != 1:
        return ()
    layers, call = fitting[0]
    return (layers.replaced(call.args[0], str(dim)),) if call.args else layers.with_keyword(call, "dim", str(dim))


def _dim(call: ast.Call) -> object:
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "dim")]
    return given[0].value if given and isinstance(given[0], ast.Constant) else None


def normalised_again(ask: Ask, mask: Operation, axis: int) -> Edits:
    """What is left of probabilities after a mask, divided by its sum: as if the scores had been masked."""
    text, node = _at(ask, mask.span)
    statement = text.statement(node) if text is not None and node is not None else None
    if text is None or not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return ()
    target = statement.targets[0]
    if not isinstance(target, (ast.Name, ast.Attribute)) or statement.value is not node:
        return ()
    name = text.source(target)
    return text.after(statement, f"{name} = {name} / {name}.sum(dim={axis}, keepdim=True).clamp(min=1e-8)")


def undivided(ask: Ask, division: Operation) -> Edits:
    """A loss that is not divided by its own value."""
    text, node = _at(ask, division.span)
    if text is None or not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
        return ()
    divisor = node.right
    while isinstance(divisor, ast.Call) and isinstance(divisor.func, ast.Attribute) and not divisor.args:
        divisor = divisor.func.value
    if text.source(divisor) != text.source(node.left):
        return ()
    return (text.replaced(node, text.source(node.left)),)
