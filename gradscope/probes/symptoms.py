"""What the text of an exception is the usual sign of. Nothing else reads messages; rules check them on the record."""

from __future__ import annotations

import re

from gradscope.graph.facts import Symptom

_SIGNS: tuple[tuple[type[BaseException], str, Symptom], ...] = (
    (RuntimeError, "does not require grad", "no graph"),
    (RuntimeError, "appears to not have been used in the graph", "no graph"),
    (AttributeError, "has no attribute 'backward'", "no tensor to differentiate"),
    (AttributeError, "'NoneType' object has no attribute", "gradient is None"),
    (TypeError, "'NoneType'", "gradient is None"),
    (ValueError, "can't optimize a non-leaf Tensor", "non-leaf in optimizer"),
    (RuntimeError, "has been modified by an inplace operation", "changed in place"),
    (RuntimeError, "a leaf Variable that requires grad", "leaf changed in place"),
    (RuntimeError, "is a view and is being modified inplace", "leaf changed in place"),
    (RuntimeError, "A view was created in no_grad mode", "leaf changed in place"),
    (RuntimeError, "functions with out=... arguments don't support automatic", "leaf changed in place"),
    (RuntimeError, "backward through the graph a second time", "freed graph"),
    (RuntimeError, "grad can be implicitly created only for", "no scalar"),
    (RuntimeError, "Mismatch in shape: grad_output", "gradient of another shape"),
    (RuntimeError, "Inference tensors", "inference tensor"),
    (RuntimeError, "inference tensor", "inference tensor"),
    (RuntimeError, "nly Tensors of floating point", "integer requires grad"),
    (RuntimeError, "returned an incorrect number of gradients", "custom backward"),
    (RuntimeError, "returned an invalid gradient", "custom backward"),
    (RuntimeError, "expected Variable or None", "custom backward"),
    (NotImplementedError, "must implement either the backward or vjp method", "custom backward"),
    (TypeError, "positional argument", "custom backward"),
    (RuntimeError, "Expected to have finished reduction in the prior iteration", "unfinished reduction"),
    (AssertionError, "No inf checks were recorded for this optimizer", "no scaled gradient"),
)


def symptom_of(error: BaseException) -> Symptom | None:
    """The trouble with gradients that this exception is a sign of.

    The texts are those of torch 2.6 to 2.13 and of Python 3.11 to 3.13.
    """
    text = _text(error)
    return next((symptom for kind, sign, symptom in _SIGNS if isinstance(error, kind) and sign in text), None)


def cause_in(error: BaseException) -> BaseException:
    """The innermost exception of a chain that is a sign of trouble with gradients or values; else the one given.

    What was raised `from` another stands for it. One that was merely raised while another was handled does so only
    where it is no sign itself.
    """
    found, values = None, None
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        seen.append(inner)
        if symptom_of(inner) is not None:
            found = inner
        elif speaks_of_values(_text(inner)):
            values = inner
        inner = inner.__cause__ or (inner.__context__ if found is None else None)
    return found or values or error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""  # it fails to tell


_WORDS = ("nan", "inf,", "infs", " inf ", "finite", "invalid values", "converge", "infinity")


def speaks_of_values(text: str) -> bool:
    """Whether an exception's message is about values that are not finite."""
    text = text.lower()
    return any(word in text for word in _WORDS)


def told_versions(error: BaseException) -> tuple[int, int] | None:
    """How often a saved tensor was changed by now, and how often when it was saved, as torch tells them."""
    found = re.search(r"is at version (\d+); expected version (\d+)", str(error))
    return (int(found[1]), int(found[2])) if found is not None else None


def same_complaint(one: BaseException, other: BaseException) -> bool:
    """Whether two exceptions say the same; torch adds a hint to the one that it raises out of a backward."""
    return str(one).partition(" Hint:")[0] == str(other).partition(" Hint:")[0]
