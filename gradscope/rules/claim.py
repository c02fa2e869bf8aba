"""What a rule says before anything is told: which trouble of which subject has which cause."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeAlias, TypeVar

from gradscope.graph.ask import Ask
from gradscope.graph.facts import Help, Label, Severity, Span, Tensor


class Trouble(Enum):
    """What a reader meets and wants explained. Each explanation is good for one subject."""

    NEVER_LEARNS = "never learns"  # of a tensor: somebody relies on its gradient, and it is never trained by it
    ZERO_GRADIENT = "zero gradient"  # of a run: what arrives is exactly 0
    NOT_FINITE = "not finite"  # of a run: values or gradients are NaN or infinite
    OUT_OF_RANGE = "out of range"  # of a run: gradients are too large for what is done with them
    PILED = "piled up"  # of a tensor: its gradient is added to one that has been used
    UNMOVED = "unmoved"  # of a tensor: steps leave it as it is
    WASTED = "wasted"  # of a line: it calls backward, and nothing uses what that brings
    MIXES = "mixes"  # of a line: what belongs to one sample or place gets into others
    REFUSED = "refused"  # of a run: torch raised an exception


class Need(Enum):
    """What must have been observed for a rule to be asked."""

    OPERATIONS = "operations"
    VALUES = "values"


Subject = Hashable  # what has the trouble: the id of a tensor, a span, or None for the run as a whole
Explained = tuple[Trouble, Subject]
Evidence = TypeVar("Evidence")


@dataclass(frozen=True, slots=True)
class Claim(Generic[Evidence]):
    """One rule's explanation of what one subject suffers from.

    Claims of a rule that have the same `cause` are told as one finding. A claim is dropped where everything that it
    `explains` has been explained already; `besides` is explained along with it, and keeps it from nothing. Without
    `explains`, it is what the rule explains, of `tensor`. A claim that explains nothing is always told.
    """

    cause: Hashable
    evidence: Evidence
    tensor: Tensor | None = None
    explains: tuple[Explained, ...] | None = None
    besides: tuple[Explained, ...] = ()
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """What is told of claims with one cause. The fields are those of a `Finding`; `tensors` are names."""

    message: str
    span: Span | None
    caret: str = ""
    tensors: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    facts: tuple[str, ...] = ()
    help: tuple[Help, ...] = ()
    operations: tuple[int, ...] = ()
    raised: bool = False


Claims: TypeAlias = Callable[[Ask], Iterator[Claim[Evidence]]]
Grouping: TypeAlias = Callable[[Sequence[Claim[Evidence]], Ask], Iterator[Sequence[Claim[Evidence]]]]
Words: TypeAlias = Callable[[Sequence[Claim[Evidence]], Ask], Story]


class Rule(Generic[Evidence]):
    """A rule: what it claims, how that is told, and how it stands to others.

    `severity` is what its findings have unless a claim has its own. `takes_over` says that it explains also what other
    rules would tell more gravely. `page` is the text of its docstring.
    """

    def __init__(
        self,
        claims: Claims[Evidence],
        severity: Severity,
        explains: Sequence[Trouble] = (),
        needs: Sequence[Need] = (Need.OPERATIONS,),
        *,
        takes_over: bool = False,
    ) -> None:
        self.name = claims.__name__.replace("_", "-")
        self.page = inspect.getdoc(claims) or ""
        self.claims = claims
        self.severity: Severity = severity
        self.explains = tuple(explains)
        self.needs = tuple(needs)
        self.takes_over = takes_over
        self._words: Words[Evidence] | None = None
        self._grouping: Grouping[Evidence] | None = None

    def words(self, words: Words[Evidence]) -> Words[Evidence]:
        """Decorates the function that tells claims which have one cause."""
        self._words = words
        return words

    def groups(self, grouping: Grouping[Evidence]) -> Grouping[Evidence]:
        """Decorates the function that says which claims have one cause, where that shows only in all of them."""
        self._grouping = grouping
        return grouping

    def grouped(self, claims: Sequence[Claim[Evidence]], ask: Ask) -> Iterator[Sequence[Claim[Evidence]]]:
        """Claims of this rule, those that have one cause together, in the order in which they were made."""
        if self._grouping is not None:
            yield from self._grouping(claims, ask)
            return
        found: dict[Hashable, list[Claim[Evidence]]] = {}
        for claim in claims:
            found.setdefault(claim.cause, []).append(claim)
        yield from found.values()

    def tell(self, told: Sequence[Claim[Evidence]], ask: Ask) -> Story:
        """What is told of some claims of this rule that have one cause."""
        if self._words is None:
            raise NotImplementedError(f"{self.name} has no words")
        return self._words(told, ask)


def rule(
    severity: Severity,
    explains: Sequence[Trouble] = (),
    needs: Sequence[Need] = (Need.OPERATIONS,),
    *,
    takes_over: bool = False,
) -> Callable[[Claims[Evidence]], Rule[Evidence]]:
    """Make a rule of a function from the questions to a run to claims; its docstring is the rule's page."""
    return lambda claims: Rule(claims, severity, explains, needs, takes_over=takes_over)


def subjects(told: Sequence[Claim[Evidence]]) -> list[Tensor]:
    """The tensors of some claims."""
    return [claim.tensor for claim in told if claim.tensor is not None]


def names_of(told: Sequence[Claim[Evidence]]) -> tuple[str, ...]:
    """The names of the tensors of some claims, each once."""
    return tuple(dict.fromkeys(tensor.name for tensor in subjects(told) if tensor.name))
