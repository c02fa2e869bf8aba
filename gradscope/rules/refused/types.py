"""Operands of types, or on devices, that do not go together."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from gradscope.graph import ops
from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Span, Tensor
from gradscope.graph.naming import entered_at, expression, short_name
from gradscope.graph.operands import Origin, is_held, origin_of_device, origin_of_type, tensor_of
from gradscope.graph.refusals import Refusal, refused_operands
from gradscope.rules.claim import Claim, Story, Trouble, rule

_FOR_EACH_CLASS = "floating point numbers where there is one for each class"
_FLOATS = frozenset({"float32", "float64", "float16", "bfloat16"})
_WHOLE = frozenset({"int64", "int32", "int16", "int8", "uint8", "bool"})


@rule("error", [Trouble.REFUSED])
def dtype_mismatch(ask: Ask) -> Iterator[Claim[Refusal]]:
    """An operation is given tensors of types that do not go together.

    Layers compute in the type of their weights, float32 unless said otherwise, and nothing is converted on the way in:
    numbers of NumPy are float64, images are bytes, labels and ranges are whole numbers. A loss over classes takes whole
    numbers as its target, a loss over values takes floating point numbers.

    Bad:

        import numpy as np
        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x, y = torch.from_numpy(np.random.rand(8, 4)), torch.rand(8, 1)
        for _ in range(3):
            loss = nn.functional.mse_loss(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Good:

        import numpy as np
        import torch
        from torch import nn

        net = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x, y = torch.from_numpy(np.random.rand(8, 4)).float(), torch.rand(8, 1)
        for _ in range(3):
            loss = nn.functional.mse_loss(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    """
    refused = refused_operands(ask, "types differ")
    if refused is not None and not _on_several_devices(ask, refused):
        yield Claim(refused.operation.id, refused)


@rule("error", [Trouble.REFUSED])
def device_mismatch(ask: Ask) -> Iterator[Claim[Refusal]]:
    """An operation is given tensors that lie on different devices.

    `model.to(device)` moves what the model has registered: parameters, buffers and submodules. Data, tensors that are
    made in `forward`, and what lies in plain lists stays where it is.

    Bad:

        import torch
        from torch import nn

        net = nn.BatchNorm1d(4, device="meta")
        x = torch.rand(8, 4)
        loss = net(x).square().mean()
        loss.backward()

    Good:

        import torch
        from torch import nn

        net = nn.BatchNorm1d(4)
        x = torch.rand(8, 4)
        loss = net(x).square().mean()
        loss.backward()
    """
    refused = refused_operands(ask, "devices differ", "types differ")
    if refused is not None and _on_several_devices(ask, refused):
        yield Claim(refused.operation.id, refused)


def _operands(ask: Ask, refused: Refusal) -> list[tuple[int, Tensor]]:
    return [(value, found) for value in refused.operation.inputs if (found := tensor_of(ask, value)) is not None]


def _on_several_devices(ask: Ask, refused: Refusal) -> bool:
    # A single number may lie anywhere.
    return len({tensor.device for _, tensor in _operands(ask, refused) if tensor.shape}) > 1


def _said(tensor: Tensor) -> str:
    return f"`{tensor.name}`" if tensor.name else "what it is given"


@dtype_mismatch.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    refused = told[0].evidence
    operation, operands = refused.operation, _operands(ask, refused)
    name = short_name(operation.name)
    value, wanted = _odd_one(ask, refused, operands)
    odd = tensor_of(ask, value) if value is not None else None
    if value is None or odd is None:
        said = ", ".join(f"{_said(tensor)} of {tensor.dtype}" for _, tensor in operands[:3])
        return Story(
            f"`{name}` cannot take {said or 'what it is given'}", operation.span, "their types do not go together",
            tuple(tensor.name for _, tensor in operands if tensor.name), (),
            (f"torch says: {refused.crash.message}",), (Help("bring them to one type, as by `.to(x.dtype)`"),),
            (operation.id,), raised=True,
        )  # fmt: skip
    span, labels = _place(ask, operation.span, origin_of_type(ask, value), f"`{name}` takes {wanted}")
    what = f"{_said(odd)} is of {odd.dtype}, where `{name}` takes {wanted}"
    return Story(
        what,
        span,
        f"it is of {odd.dtype} from here on" if span != operation.span else f"{odd.dtype} comes in here",
        (odd.name,) if odd.name else (),
        labels,
        (f"torch says: {refused.crash.message}",),
        (Help(_conversion(odd, wanted)),),
        (operation.id,),
        raised=True,
    )


def _odd_one(ask: Ask, refused: Refusal, operands: Sequence[tuple[int, Tensor]]) -> tuple[int | None, str]:
    """The operand whose type is the wrong one, and which it should have."""
    operation, message = refused.operation, refused.crash.message
    held = [tensor for _, tensor in operands if is_held(tensor)]
    free = [(value, tensor) for value, tensor in operands if not is_held(tensor)]
    if ops.is_a(operation, ops.LOOKS_UP):
        return (free[0][0] if free else None), "int64"
    if ops.is_a(operation, ops.TAKES_PLACES) and len(operands) > 1 and operands[1][1].dtype in _FLOATS:
        return operands[1][0], "int64"
    if ops.is_a(operation, ops.LOSSES_OF_CLASSES) and len(operands) > 1:
        value, target = operands[1]
        if operands[0][1].dtype in _WHOLE:
            return operands[0][0], "float32"
        if target.dtype in _WHOLE and "Expected floating point type" in message:
            return value, _FOR_EACH_CLASS
        return value, "int64"
    if ops.is_a(operation, ops.LOSSES) and len(operands) > 1:
        reference = operands[0][1].dtype
        wrong = [value for value, tensor in operands[1:] if tensor.dtype != reference]
        if reference in _WHOLE:
            return operands[0][0], "float32"
        return (wrong[0] if wrong else None), reference
    if held and free:
        wanted = held[0].dtype
        wrong = [value for value, tensor in free if tensor.dtype != wanted]
        return (wrong[0] if wrong else None), wanted
    if (
        any(said in message for said in ("indices", "Long", "index")) and "used as" in message
    ) or "IntTensor" in message:
        wrong = [value for value, tensor in operands[1:] if tensor.dtype in _FLOATS]
        return (wrong[0] if wrong else None), "int64"
    floats = [tensor.dtype for _, tensor in operands if tensor.dtype in _FLOATS]
    whole = [value for value, tensor in operands if tensor.dtype in _WHOLE]
    if len(operands) == 1 and whole:
        return whole[0], "float32"
    if floats and len(whole) == 1 and "boolean" not in message:
        return whole[0], floats[0]
    if len(set(floats)) == 2 and not whole and "float32" in floats:
        wrong = [value for value, tensor in operands if tensor.dtype != "float32"]
        return wrong[0], "float32"
    return None, ""


def _conversion(odd: Tensor, wanted: str) -> str:
    method = {"float32": ".float()", "int64": ".long()", "float64": ".double()", "bool": ".bool()"}.get(wanted)
    if wanted == _FOR_EACH_CLASS:
        return "give the class of each sample, `.argmax(1)`, or convert it: `.float()`"
    text = method if method is not None else f".to(torch.{wanted})"
    scaled = ", and divide by 255 where these are images" if odd.dtype == "uint8" and wanted == "float32" else ""
    return f"convert it: `{text}`{scaled}"


def _place(ask: Ask, call: Span | None, origin: Origin | None, said: str) -> tuple[Span | None, tuple[Label, ...]]:
    """Where an operand became what it is, if a call there made it so; else the call that refuses it."""
    # What no operation made was met only where it was used first.
    if call is not None and origin is not None and origin.operation is None:
        entered = entered_at(origin.tensor.name, call, ask.run.sources)
        return (entered, (Label(call, f"{said}, so torch raises here"),)) if entered is not None else (call, ())
    if origin is None or origin.operation is None or origin.span in (None, call) or call is None:
        return call, ()
    if origin.span is None or not isinstance(
        expression(origin.span, ask.run.sources), (ast.Call, ast.Attribute, ast.BinOp)
    ):
        return call, ()
    return origin.span, (Label(call, f"{said}, so torch raises here"),)


@device_mismatch.words
def _(told: Sequence[Claim[Refusal]], ask: Ask) -> Story:
    refused = told[0].evidence
    operation, operands = refused.operation, [pair for pair in _operands(ask, refused) if pair[1].shape]
    name = short_name(operation.name)
    held = [tensor for _, tensor in operands if is_held(tensor)]
    first = next(tensor for _, tensor in operands if tensor.device != "cpu")
    stays = [(value, tensor) for value, tensor in operands if tensor.device == "cpu"]
    value, odd = stays[0] if stays else operands[0]
    wanted = first.device
    call = refused.crash.call
    labels: tuple[Label, ...] = ()
    span, caret = operation.span, f"meets one on {wanted} here"
    mend = f"move it to the same device: `.to({_like(operands, odd)}.device)`"
    if odd in held:
        lost = odd.registered != "parameter" and odd.registered != "buffer"
        span, caret = odd.made or span, f"made on {odd.device}, and not moved from there"
        mend = "register it, as `nn.ModuleList`, `nn.Parameter` or `register_buffer` do: then `.to(device)` moves it"
        if not lost:
            mend = f"move the model that holds it: `.to({wanted!r})`"
    else:
        origin = origin_of_device(ask, value)
        inside = origin is not None and origin.span is not None and _in_forward(origin.span, operation.span)
        if inside and origin is not None:
            span, caret = origin.span, f"made on {odd.device} whatever the device of the model is"
            mend = f"make it where the others are: `device={_like(operands, odd)}.device`"
        elif call is not None and call.entered is not None:
            span, caret = call.entered, f"goes in on {odd.device}, the model is on {wanted}"
            mend = f"move what goes in to the device of the model: `.to({wanted!r})`"
    if span != operation.span and operation.span is not None:
        labels = (Label(operation.span, "so torch raises here"),)
    others = ", ".join(f"{_said(tensor)} on {tensor.device}" for _, tensor in operands[:3])
    return Story(
        f"`{name}` is given tensors on different devices: {others}",
        span, caret, (odd.name,) if odd.name else (), labels,
        (f"torch says: {refused.crash.message}",), (Help(mend),), (operation.id,), raised=True,
    )  # fmt: skip


def _like(operands: Sequence[tuple[int, Tensor]], odd: Tensor) -> str:
    """A tensor beside which another may lie, by a name that can be written."""
    named = (tensor.name for _, tensor in operands if tensor.device != odd.device and tensor.name)
    return next((name for name in named if name.isidentifier()), "x")


def _in_forward(made: Span, called: Span | None) -> bool:
    """Whether a tensor is made by the function that uses it, which is none of the module's level."""
    return called is not None and made.function == called.function and made.function not in (None, "<module>")
