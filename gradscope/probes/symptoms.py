"""What the text of an exception is the usual sign of. Nothing else reads messages; rules check them on the record."""

from __future__ import annotations

from gradscope.graph.facts import Symptom

_SIGNS: tuple[tuple[type[BaseException], str, Symptom], ...] = (
    (RuntimeError, "does not require grad", "no graph"),
    (RuntimeError, "appears to not have been used in the graph", "no graph"),
    (AttributeError, "has no attribute 'backward'", "no tensor to differentiate"),
    (AttributeError, "'NoneType' object has no attribute", "gradient is None"),
    (TypeError, "'NoneType'", "gradient is None"),
    (ValueError, "can't optimize a non-leaf Tensor", "non-leaf in optimizer"),
)


def symptom_of(error: BaseException) -> Symptom | None:
    """The trouble with gradients that this exception is a sign of.

    The texts are those of torch 2.6 to 2.13 and of Python 3.11 to 3.13.
    """
    text = str(error)
    return next((symptom for kind, sign, symptom in _SIGNS if isinstance(error, kind) and sign in text), None)
