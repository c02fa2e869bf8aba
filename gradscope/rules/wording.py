"""Phrases that several rules say in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.graph.facts import Run


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


def who(names: Sequence[str]) -> tuple[str, str]:
    """The subject of a sentence about these tensors, and what is counted: (`encoder`, `its 4 parameters`)."""
    if len(names) == 1:
        return f"`{names[0]}`", "it"
    module = owner(names)
    if module is not None:
        return f"`{module}`", f"its {len(names)} parameters"
    if len(names) == 2:
        return f"`{names[0]}` and `{names[1]}`", "they"
    modules = list(dict.fromkeys(name.split(".")[0] for name in names))
    if len(modules) < len(names) and len(modules) <= 3:
        return " and ".join(
            [", ".join(f"`{m}`" for m in modules[:-1]), f"`{modules[-1]}`"]
        ), f"their {len(names)} parameters"
    return f"`{names[0]}` and {len(names) - 1} more", "they"


def them(names: Sequence[str]) -> str:
    """The pronoun for `who(names)`: `it` for one tensor or module."""
    return "it" if len(names) == 1 or owner(names) is not None else "them"


def learns(names: Sequence[str]) -> str:
    """The verb that agrees with `who(names)`."""
    return "never learns" if len(names) == 1 or owner(names) is not None else "never learn"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names with commas, the rest counted."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def steps_text(run: Run, count: int | None = None) -> str:
    """`20 steps`, `1 step`."""
    number = run.step_count if count is None else count
    return f"{number:,} step" if number == 1 else f"{number:,} steps"
