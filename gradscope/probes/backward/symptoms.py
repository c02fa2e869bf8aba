"""What the text of an exception is the usual sign of. Nothing else reads messages; rules check them on the record."""

from __future__ import annotations

import re

from gradscope.graph.facts import Symptom

_SIGNS: tuple[tuple[type[BaseException], str, Symptom], ...] = (
    (RuntimeError, "torch.utils.checkpoint: Recomputed values", "recomputed otherwise"),
    (RuntimeError, "torch.utils.checkpoint: A different number of tensors", "recomputed otherwise"),
    (RuntimeError, "torch.utils.checkpoint: trying to save more tensors", "recomputed otherwise"),
    (RuntimeError, "Expected to mark a variable ready only once", "ready twice"),
    (RuntimeError, "compiled with non-empty donated buffers", "compiled for one pass"),
    (RuntimeError, "does not currently support double backward", "compiled for one pass"),
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
    (RuntimeError, "is not differentiable with respect to argument", "argument without derivative"),
    (RuntimeError, "(graph leaves) support the deepcopy protocol", "copy of a result"),
    (RuntimeError, "vmap: inplace arithmetic", "changed in place under vmap"),
)
# What torch says of operands that do not go together; believed only of a call of torch's that raised.
_OPERANDS: tuple[tuple[Symptom, tuple[str, ...]], ...] = (
    (
        "devices differ",
        (
            "is not on the expected device", "to be on the same device", "are not at the same device",
            "be either on cpu or on the same device", "Expected object of device type",
        ),
    ),
    (
        "types differ",
        (
            "must have the same dtype", "to have the same dtype", "to have same dtype", "expected scalar type",
            "Input type (", "does not match weight dtype", "mixed dtype", "\" not implemented for '",
            "could not infer output dtype", "can't be cast to the desired output type", "Found dtype",
            "expected target dtype", "one of the following scalar types", "Expected floating point type for target",
            "to be a boolean tensor", "only supports boolean masks", "Expected attn_mask dtype",
            "used as indices must be", "only applicable to index tensor", "two bool tensors is not supported",
            "on a bool tensor is not supported", "requires the source and destination dtypes match",
            "Expected self.dtype to be equal", "must have the same scalar type", "but got dtype",
            "only support floating point and complex", "Expected a floating point or complex tensor",
            "Type promoting not supported", "Boolean inputs not supported", "Expected object of scalar type",
            "Expected dtype int64 for index", "Expected dtype int32/int64 for index",
        ),
    ),
    (
        "index out of range",
        (
            "index out of range in self", "is out of bounds", "out of range for tensor of size",
            "out of range: tried to access", "Class values must be", "not in the valid range",
            "target out of range", "exceeds dimension size", "indices must be non-negative", "index out of bounds",
        ),
    ),
    (
        "shapes differ",
        (
            "shapes cannot be multiplied", "size mismatch", "inconsistent tensor size", "previously seen size",
            "Expected size for first two dimensions", "channels, but got", "(unbatched) or", "D input)",
            "Kernel size can't be greater", "Output size is too small", "running_mean should contain",
            "Expected more than 1 value per channel", "Given normalized_shape", "to be a vector of size equal to",
            "is invalid for input of size", "view size is not compatible", "don't multiply up to the size",
            "Sizes of tensors must match except", "must have same number of dimensions",
            "expects each tensor to be equal size", "must match the size of tensor", "doesn't match the broadcast",
            "must match the existing size", "to match target batch_size", "multi-target not supported",
            "Expected target size", "only batches of spatial targets", "that is different to the input size",
            "must be the same as input size", "same number of dimensions as", "Size does not match at dimension",
            "too many indices for tensor", "The shape of the mask", "split_with_sizes expects",
            "must be equal to input_size", "Expected hidden", "inconsistent input_size", "doesn't match hidden",
            "hx should also be", "Expected input to be 2D or 3D", "embedding dimension of", "2D attn_mask is",
            "key_padded_mask.shape", "must be equal to d_model", "size does not match weight size",
            "Dimension out of range", "length of the desired ordering", "expects a tensor with <= 2 dimensions",
            "must be a matrix", "tensor should be defined either for all", "unmatched number of dimensions",
            "could not be broadcast", "input tensor expected", "batch mode) tensor expected", "must be 3D",
        ),
    ),
)  # fmt: skip


def symptom_of(error: BaseException) -> Symptom | None:
    """The trouble with gradients that this exception is a sign of.

    The texts are those of torch 2.6 to 2.13 and of Python 3.11 to 3.13.
    """
    text = text_of(error)
    found = next((symptom for kind, sign, symptom in _SIGNS if isinstance(error, kind) and sign in text), None)
    if found is None and isinstance(error, (RuntimeError, ValueError, IndexError, AssertionError)):
        first = text.partition("\n")[0]
        found = next((symptom for symptom, signs in _OPERANDS if any(sign in first for sign in signs)), None)
    return found


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
        elif speaks_of_values(text_of(inner)):
            values = inner
        inner = inner.__cause__ or (inner.__context__ if found is None else None)
    return found or values or error


def text_of(error: BaseException) -> str:
    """An exception's message, "" where the exception fails to tell it."""
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
