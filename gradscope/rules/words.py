"""Phrases that several rules say in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Label, Run, Span, Tensor


def owner(names: Sequence[str]) -> str | None:
    """The module that all these tensors lie in, if there is one: `encoder` for `encoder.0.weight, encoder.0.bias`."""
    parts_of = [name.split(".") for name in names]
    # A tensor in a plain list of a module lies in that list: `net.w` of `net.w[0], net.w[1]`.
    paths = [parts if len(parts) > 1 and parts[-1].endswith("]") else parts[:-1] for parts in parts_of]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            lists = {part.partition("[")[0] for part in parts if part.endswith("]")}
            if len(lists) == 1 and all(part.endswith("]") for part in parts):
                shared += lists
            break
        shared.append(parts[0])
    return ".".join(shared) or None


@dataclass(frozen=True, slots=True)
class Who:
    """How a sentence speaks of some tensors: "`encoder` never learns: its 4 parameters got no gradient".

    A module stands for its tensors only where all that it has to train are among them.
    """

    subject: str
    counted: str
    them: str
    learns: str

    @property
    def one(self) -> bool:
        """Whether the subject is one thing: `is`, `does`, `its`."""
        return self.them == "it"


def who(names: Sequence[str], run: Run) -> Who:
    """The words for these tensors of a run."""
    module = owner(names)
    if len(names) == 1:
        return Who(f"`{names[0]}`", "it", "it", "never learns")
    if module is not None and _is_whole(module, names, run):
        return Who(f"`{module}`", f"its {len(names)} parameters", "it", "never learns")
    modules = list(dict.fromkeys(name.split(".")[0] for name in names))
    if 1 < len(modules) < len(names) and len(modules) <= 3 and all(_is_whole(part, names, run) for part in modules):
        most = ", ".join(f"`{part}`" for part in modules[:-1])
        return Who(f"{most} and `{modules[-1]}`", f"their {len(names)} parameters", "them", "never learn")
    if len(names) == 2:
        return Who(f"`{names[0]}` and `{names[1]}`", "they", "them", "never learn")
    return Who(f"`{names[0]}` and {len(names) - 1} more", "they", "them", "never learn")


def whole_module(name: str, names: Sequence[str], run: Run) -> str | None:
    """The outermost module around a tensor of which everything that it has to train is among these names."""
    parts = name.split(".")
    paths = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((path for path in paths if _is_whole(path, names, run)), None)


def _is_whole(module: str, names: Sequence[str], run: Run) -> bool:
    """Whether everything that a module has to train is among these tensors."""
    told = set(names)
    return not any(
        tensor.name not in told
        and tensor.leaf
        and tensor.requires_grad
        and any(name.startswith((f"{module}.", f"{module}[")) for name in _spellings(tensor))
        for tensor in run.tensors
    )


def _spellings(tensor: Tensor) -> tuple[str, ...]:
    """The name of a tensor as it is told, and with the variable of its model in front."""
    name = tensor.name
    return () if name is None else (name, f"{tensor.module}.{name}") if tensor.module is not None else (name,)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names with commas, the rest counted."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def steps_text(run: Run, count: int | None = None) -> str:
    """`20 steps`, `1 step`."""
    number = run.step_count if count is None else count
    return f"{number:,} step" if number == 1 else f"{number:,} steps"


def times_text(count: int) -> str:
    """`20 times`, `once`."""
    return "once" if count == 1 else f"{count:,} times"


def raised_at(ask: Ask, place: Span | None, what: str = "so torch raises") -> tuple[Label, ...]:
    """The label at the line that raised, where that is another place."""
    crash = ask.run.crash
    if crash is None or crash.span is None or crash.span == place:
        return ()
    return (Label(crash.span, f"{what} {crash.type} here"),)
