"""The text of a random program, put together from ingredients.

The dice are a seeded `random.Random`, and not hypothesis: a number then stands for a program for ever, in any process,
without a database of examples, and a failing program is made smaller as text, which is what a reader wants to see.
"""

from __future__ import annotations

import itertools
import random
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Chosen = TypeVar("Chosen")


class Program:
    """A program in the making: ingredients throw its dice and put their code where it belongs."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self.dice = random.Random(seed)
        self.without = without
        self.used: list[str] = []
        self.steps = self.dice.choice([1, 2, 3, 3, 4, 9, 17])
        self.definitions: list[str] = []  # classes and functions
        self.settings: list[str] = []  # before anything of torch's is made
        self.setup: list[str] = []  # the model, the optimizer and what else the loop needs
        self.batch: list[str] = []  # in the loop, once `x` and `y` are there
        self.hidden: list[str] = []  # in the loop, on the result `h` of the model, in the batch's shape
        self.loss: list[str] = []  # in the loop, on `loss`
        self.backward = "loss.backward()"
        self.update = "opt.step()"
        self.clear = "opt.zero_grad()"
        self.after_backward: list[str] = []
        self.after_update: list[str] = []
        self.around: list[str] = []  # `with` lines around the loop, from the outside
        self.episodes: list[str] = []  # each runs by itself, after or before the loop
        self.ending: list[str] = []
        self._numbers = itertools.count(1)

    def pick(self, *choices: Chosen) -> Chosen:
        """One of these."""
        return self.dice.choice(choices)

    def chance(self, probability: float) -> bool:
        """True this often."""
        return self.dice.random() < probability

    def define(self, code: str) -> None:
        """A class or a function of the program, once however many ask for it."""
        code = block(code)
        if code not in self.definitions:
            self.definitions.append(code)

    def number(self) -> int:
        """A number that no other name of the program has yet."""
        return next(self._numbers)


@dataclass
class Ingredients:
    """Ingredients of one kind. To add one is to write a function of a program and to decorate it."""

    kind: str
    members: dict[str, tuple[Callable[..., str | None], float]] = field(default_factory=dict)

    def __call__(
        self, function: Callable[..., str | None] | None = None, *, weight: float = 1.0
    ) -> Callable[..., object]:
        """Add a function, which goes by its name."""

        def add(function: Callable[..., str | None]) -> Callable[..., str | None]:
            assert function.__name__ not in self.members
            self.members[function.__name__] = (function, weight)
            return function

        return add if function is None else add(function)

    def draw(self, program: Program) -> str | None:
        """Put one of these into a program; gives what its function gives."""
        names = [name for name in self.members if name not in program.without]
        if not names:
            return None
        (name,) = program.dice.choices(names, [self.members[name][1] for name in names])
        program.used.append(name)
        return self.members[name][0](program)


def block(code: str) -> str:
    """Code without the indentation of the function that it is written in."""
    return textwrap.dedent(code).strip("\n")


def indented(blocks: Sequence[str], depth: int = 1) -> str:
    """Code inside of something."""
    return "".join(textwrap.indent(block(code), "    " * depth) + "\n" for code in blocks)
