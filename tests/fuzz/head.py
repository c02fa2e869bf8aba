"""What every random program begins with: it tells all that could differ, to the last bit."""

HEAD = """\
import contextlib, copy, functools, gc, hashlib, io, itertools, math, os, pickle, random, re, sys, threading, traceback, warnings, weakref
import torch
import torch.nn.functional as F
from torch import nn


def told(value):
    if isinstance(value, torch.Tensor):
        with torch._C.DisableTorchFunction():
            return tensor_told(value)
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + str([told(one) for one in value])
    if isinstance(value, dict):
        return str([(key, told(one)) for key, one in value.items()])
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return re.sub("0x[0-9a-f]+", "0x", repr(value))  # addresses are nobody's business


def tensor_told(value):
    plain = value.detach()
    if plain.is_sparse:
        plain = plain.coalesce()
        return f"sparse {tensor_told(plain.indices())} {tensor_told(plain.values())}"
    if plain.is_nested:
        return "nested " + str([tensor_told(one) for one in plain.unbind()])
    flat = plain.resolve_conj().resolve_neg().contiguous().reshape(-1)
    digest = hashlib.sha1(flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:10] if flat.numel() else "empty"
    total = flat.sum().item() if flat.is_complex() else flat.double().sum().item()
    version = None if value.is_inference() else value._version
    node = type(value.grad_fn).__name__ if value.grad_fn is not None else None
    return f"<{value.dtype} {list(value.shape)} {value.requires_grad} {value.is_leaf} {node} {version} {digest} {total!r}>"


def show(what, *values):
    print(what, *map(told, values))


def attempt(what, function):
    try:
        show(what, function())
    except Exception as error:
        show(what, error)
"""

# Said last, whatever came before.
TAIL = """\
show("rng", torch.get_rng_state(), random.random())
show("switches", torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.is_anomaly_enabled())
show("threads", threading.active_count(), sys.getrecursionlimit(), len(warnings.filters))
"""
