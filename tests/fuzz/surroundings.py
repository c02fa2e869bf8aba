"""What a program leaves behind in its process, as a text that two processes can be compared by."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from typing import Any

import torch

# Where observing puts something in, is found by looking everywhere in these.
_LOOKED_AT = (
    "torch",
    "threading",
    "warnings",
    "sys",
    "traceback",
    "builtins",
    "atexit",
    "linecache",
    "runpy",
    "copy",
    "copyreg",
)
_NOT_LOOKED_AT = ("torch._inductor", "torch.testing", "torch.fx", "torch.distributed", "torch.onnx", "torch.ao")
# These keep counts and caches: only what they do is looked at.
_CHANGES = (
    "torch._dynamo",
    "torch._subclasses",
    "torch._guards",
    "torch._functorch",
)  # keep counts and caches: only what they do is looked at
# These change because a program ran, whoever ran it.
_OF_ITSELF = {
    "sys.argv",
    "sys.path",
    "sys.stdout",
    "sys.stderr",
    "sys.last_value",
    "sys.last_type",
    "sys.last_traceback",
    "sys.last_exc",
    "linecache.cache",
    "torch.utils.hooks.RemovableHandle.next_id",
}


class Before:
    """The attributes of torch's modules and classes before anything ran."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[Any, dict[str, Any]]] = {}
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in _LOOKED_AT and not name.startswith(_NOT_LOOKED_AT):
                attributes = dict(vars(module))
                self._owners[name] = module, attributes
                for key, value in attributes.items():
                    if isinstance(value, type) and getattr(value, "__module__", None) == name:
                        self._owners[f"{name}.{key}"] = value, dict(vars(value))
        self._hooks = {
            name: value
            for module in map(sys.modules.get, ("torch.nn.modules.module", "torch.optim.optimizer"))
            for name, value in vars(module).items()
            if name.startswith("_global_") and isinstance(value, dict)
        }

    def left_behind(self, thoroughly: bool) -> dict[str, str]:
        """What is otherwise now, and with `thoroughly` which attributes; the same must be left, observed or not."""
        found = self._attributes() if thoroughly else {}
        found |= {name: str(len(hooks)) for name, hooks in self._hooks.items()}
        for name in ("meta_path", "path_hooks", "path"):
            found[f"sys.{name}"] = str(len(getattr(sys, name)))
        found["function modes"] = str(len(torch.overrides._get_current_function_mode_stack()))
        found["dispatch modes"] = str(torch._C._len_torch_dispatch_stack())
        found["saved tensors hooks"] = str(torch._C._autograd._top_saved_tensors_default_hooks(True) is None)
        found["grad mode"] = (
            f"{torch.is_grad_enabled()} {torch.is_inference_mode_enabled()} {torch.is_anomaly_enabled()}"
        )
        found["tracing"] = f"{sys.gettrace()} {sys.getprofile()} {sys.getrecursionlimit()} {len(gc.callbacks)}"
        found["signals"] = str([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
        found["filters"] = str(warnings.filters)
        found["environment"] = str(sorted(set(os.environ) - {"OMP_NUM_THREADS"}))
        found["folder"] = os.getcwd()
        found["threads"] = str(sorted(thread.name for thread in threading.enumerate()))
        found["descriptors"] = str(len(os.listdir("/proc/self/fd")))
        return found

    def _attributes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, (owner, attributes) in self._owners.items():
            now = vars(owner)
            for key, value in attributes.items():
                if (
                    now.get(key) is not value
                    and f"{name}.{key}" not in _OF_ITSELF
                    and not (name.startswith(_CHANGES) and not callable(value))
                ):
                    found[f"{name}.{key}"] = _said(now.get(key))
            if len(now) != len(attributes):
                for key in () if name.startswith(_CHANGES) else [key for key in now if key not in attributes]:
                    if (
                        not isinstance(now[key], type(sys))
                        and key not in ("__warningregistry__", "__slotnames__")
                        and f"{name}.{key}" not in _OF_ITSELF
                    ):
                        found[f"{name}.{key}"] = _said(now[key])
        return found


def _said(value: Any) -> str:
    where = getattr(value, "__module__", None)
    return f"{type(value).__name__} {where if isinstance(where, str) else ''} {getattr(value, '__qualname__', '')}"
