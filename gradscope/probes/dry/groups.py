"""Process groups of a dry run: torch's fake backend, in which every collective ends at once, and plain replicas."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradscope.probes.dry.standins import StandIns
from gradscope.probes.tensors.patches import patched


@contextmanager
def fake_groups(noted: StandIns) -> Iterator[None]:
    """Have the process be one of as many as it was told, none of which answers."""
    if not dist.is_available():
        yield
        return
    with ExitStack() as stack:
        for owner, name, wrap in (
            (dist, "init_process_group", _initialising(noted)),
            (dist, "all_gather_object", lambda _: _gathered),
            (dist, "broadcast_object_list", lambda _: _nothing),
            (DistributedDataParallel, "__init__", lambda _: _wrapping),
            (DistributedDataParallel, "forward", lambda _: _called),
            (DistributedDataParallel, "register_comm_hook", lambda _: _nothing),
        ):
            stack.enter_context(patched(owner, name, wrap, always=True))
        yield


def _initialising(noted: StandIns) -> Callable[[Any], Any]:
    def wrap(original: Any) -> Any:
        def init_process_group(*_: Any, rank: int = -1, world_size: int = -1, **__: Any) -> None:
            from torch.testing._internal.distributed.fake_pg import FakeStore

            rank = rank if rank >= 0 else int(os.environ.get("RANK", 0))
            world_size = world_size if world_size > 0 else int(os.environ.get("WORLD_SIZE", 1))
            noted.note("a process group", f"rank {rank} of {world_size}, whose collectives change nothing")
            original("fake", store=FakeStore(), rank=rank, world_size=world_size)

        return init_process_group

    return wrap


def _gathered(object_list: list[Any], obj: Any, *_: Any, **__: Any) -> None:
    object_list[:] = [obj] * len(object_list)


def _nothing(*_: Any, **__: Any) -> None:
    """What has no effect here."""


def _wrapping(self: Any, module: torch.nn.Module, *_: Any, **options: Any) -> None:
    torch.nn.Module.__init__(self)
    self.module = module
    self.require_backward_grad_sync = True
    self.find_unused_parameters = bool(options.get("find_unused_parameters"))
    self.static_graph = bool(options.get("static_graph"))
    self.device, self.device_ids, self.process_group = torch.device("cpu"), None, None


def _called(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.module(*args, **kwargs)
