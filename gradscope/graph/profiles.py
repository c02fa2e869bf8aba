"""Questions asked of a profile: where on its way from the loss a gradient became zero, or shrank, or grew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.graph import limits, ops
from gradscope.graph.facts import Operation, Profile, ProfileNode, Span

# Their derivative is 1 or 0, or a sum of such: what they send is nothing only if parts of it cancel.
_LINEAR = frozenset(
    {
        "Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "Expand", "View", "UnsafeView", "Reshape", "T", "Transpose",
        "Permute", "Squeeze", "Unsqueeze", "Clone", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Slice",
        "Select", "Index", "Repeat", "ToCopy", "Alias", "AsStrided", "Im2Col", "Col2Im", "ConstantPadNd", "Unfold",
        "ReplicationPad2D", "ReflectionPad2D", "Copy", "UnsafeSplit", "Roll", "Flip", "Gather", "Diagonal",
    }
)  # fmt: skip
# The edge of an addend in operations that multiply as well: its gradient is a sum of what comes in.
_ADDENDS = {
    "Addmm": 0, "Addmv": 0, "Baddbmm": 0, "Addbmm": 0, "Convolution": 2, "NativeLayerNorm": 2, "NativeBatchNorm": 2,
    "CudnnBatchNorm": 2, "NativeGroupNorm": 2, "MkldnnConvolution": 2, "Linear": 2,
}  # fmt: skip


# A term of a loss passes nothing but these on its way.
_SUMMED = _LINEAR | {"Mul", "Div"}

# What a weight may pass before its layer computes with it.
_SCALED = frozenset({"Mul", "Div", "WeightNormInterface"})


@dataclass(frozen=True, slots=True)
class Stage:
    """One node on the way of a gradient: what came in, and what went on towards the leaf (2-norms).

    `factors` are the leaves that it multiplies by, `addends` those that it adds, both as they are or rearranged.
    `place` is that of the node, and `rounded` says that float16 held nothing of what it had to send.
    """

    name: str
    operation: Operation | None
    arrived: float
    sent: float
    adds: bool
    factors: tuple[int, ...] = ()
    addends: tuple[int, ...] = ()
    place: int = 0
    rounded: bool = False

    @property
    def growth(self) -> float:
        """In powers of ten; negative where the gradient shrinks."""
        return math.log10(self.sent / self.arrived)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What several ways bring to one intermediate adds up to exactly zero.

    `made` is the operation that made it, `branches` are those that took it, and at `meeting` their ways come together.
    `straight` says that it goes into the meeting operation itself by one of its ways, and by no other operation.
    """

    made: Operation | None
    branches: tuple[Operation, ...]
    meeting: Operation
    straight: bool


class ProfileFlow:
    """The way of the gradient through the pass that was profiled."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.operations = {operation.id: operation for operation in profile.operations}
        self.leaves = {node.tensor: place for place, node in enumerate(profile.nodes) if node.tensor is not None}
        self.senders: dict[int, list[tuple[int, int]]] = {}
        for place, node in enumerate(profile.nodes):
            for edge, target in enumerate(node.edges):
                if target is not None:
                    self.senders.setdefault(target, []).append((place, edge))

    def zeroed(self, tensor: int) -> list[Stage]:
        """Where the gradient of a leaf became exactly zero: the stages that take some and send none.

        Empty where that is no one's doing: contributions cancel, or nothing is known.
        """
        if tensor not in self.leaves:
            return []
        found: list[Stage] = []
        waiting = [self.leaves[tensor]]
        seen = set(waiting)
        only_sums = True
        while waiting:
            place = waiting.pop(0)
            for sender, edge in self.senders.get(place, ()):
                node = self.profile.nodes[sender]
                name = plain(node.name)
                if node.sent[edge]:
                    return []
                if node.arrived:
                    rounded = node.half and name not in ops.FLAT_NODES and node.arrived < limits.ROUNDED
                    if not rounded and (self._adds(name, edge) or (only_sums and name in ("Mul", "Div"))):
                        return []  # parts cancel; or a leaf is only made to take part, as in `0 * w.sum()`
                    operation = self._operation(sender)
                    found.append(Stage(name, operation, node.arrived, 0.0, False, place=sender, rounded=rounded))
                elif sender not in seen:
                    seen.add(sender)
                    waiting.append(sender)
                only_sums = only_sums and name in _LINEAR
        return found

    def cancelled(self, tensor: int) -> Cancelled | None:
        """Where the ways to a leaf come together whose gradient is exactly zero because they cancel.

        A leaf at which they do so itself, as the last bias of two calls whose results are subtracted, is one that
        makes no difference by design.
        """
        waiting = [self.leaves[tensor]] if tensor in self.leaves else []
        seen = set(waiting)
        while waiting:
            place = waiting.pop(0)
            bringing = [pair for pair in self.senders.get(place, ()) if self.profile.nodes[pair[0]].sent[pair[1]]]
            if len(bringing) > 1 and self._leaf_at(place) is None:
                return self._cancelled_at(place, [sender for sender, _ in bringing])
            if bringing:
                return None
            for sender, _ in self.senders.get(place, ()):
                if sender not in seen and not self.profile.nodes[sender].arrived:
                    seen.add(sender)
                    waiting.append(sender)
        return None

    def _cancelled_at(self, place: int, senders: list[int]) -> Cancelled | None:
        nodes = self.profile.nodes
        common = set.intersection(*({sender, *self._towards_loss(sender)} for sender in senders))
        made = {nodes[other].sequence: other for other in common if self._operation(other) is not None}
        if not made:
            return None
        meeting = made[min(made)]
        operation = self._operation(meeting)
        assert operation is not None
        branches = [self._operation(sender) for sender in dict.fromkeys(senders)]
        return Cancelled(
            self._operation(place),
            tuple(branch for branch in branches if branch is not None and branch.id != operation.id),
            operation,
            set(senders) == {meeting},
        )

    def _towards_loss(self, place: int) -> set[int]:
        """The nodes that lie between one and the loss."""
        found: set[int] = set()
        waiting = [place]
        while waiting:
            for sender, _ in self.senders.get(waiting.pop(), ()):
                if sender not in found:
                    found.add(sender)
                    waiting.append(sender)
        return found

    def is_a_term(self, place: int) -> bool:
        """Whether what a node gives is summed up to the loss, scaled at most: where it is 0, nothing is left to do."""
        seen, waiting = {place}, [place]
        while waiting:
            current = waiting.pop()
            senders = self.senders.get(current, ())
            if not senders:
                return True
            for sender, _ in senders:
                if sender not in seen and plain(self.profile.nodes[sender].name) in _SUMMED:
                    seen.add(sender)
                    waiting.append(sender)
        return False

    def lies_behind(self, place: int, other: int) -> bool:
        """Whether `place` is on a way from `other` towards the leaves."""
        return other in self._towards_loss(place)

    def way(self, tensor: int) -> list[Stage]:
        """The way by which most of a leaf's gradient came, from the loss on."""
        place = self.leaves.get(tensor)
        stages: list[Stage] = []
        seen: set[int] = set()
        while place is not None and place not in seen:
            seen.add(place)
            best = max(
                (
                    (self.profile.nodes[sender].sent[edge] or 0.0, sender, edge)
                    for sender, edge in self.senders.get(place, ())
                ),
                default=None,
            )
            if best is None or not best[0]:
                break
            sent, sender, edge = best
            node = self.profile.nodes[sender]
            if not node.arrived:
                break
            name = plain(node.name)
            adds = self._adds(name, edge)
            factors, addends = self._beside(node, name, edge)
            stages.append(Stage(name, self._operation(sender), node.arrived, sent, adds, factors, addends))
            place = sender
        return stages[::-1]

    def _beside(self, node: ProfileNode, name: str, taken: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The leaves on the other edges of a node: what it multiplies by, and what it adds."""
        factors: list[int] = []
        addends: list[int] = []
        for edge, target in enumerate(node.edges):
            leaf = self._leaf_at(target) if edge != taken else None
            if leaf is not None:
                (addends if self._adds(name, edge) else factors).append(leaf)
        return tuple(factors), tuple(addends)

    def _leaf_at(self, place: int | None) -> int | None:
        """The leaf that lies behind nothing but rearrangements, and the scaling of a reparametrised weight."""
        seen: set[int] = set()
        while place is not None and place not in seen:
            seen.add(place)
            node = self.profile.nodes[place]
            if node.tensor is not None:
                return node.tensor
            if plain(node.name) not in _LINEAR | _SCALED:
                return None
            place = next((target for target in node.edges if target is not None), None)
        return None

    def _operation(self, place: int) -> Operation | None:
        return self.operations.get(self.profile.nodes[place].operation or -1)

    @staticmethod
    def _adds(name: str, edge: int) -> bool:
        return name in _LINEAR or _ADDENDS.get(name) == edge


def plain(name: str) -> str:
    """`Sqrt` for SqrtBackward0."""
    return name.rstrip("0123456789").removesuffix("Backward")


def repeated(stages: list[Stage]) -> Iterator[tuple[Operation, float, list[Stage]]]:
    """The lines that a way passes, with the growth on each in powers of ten and the stages there.

    Only what multiplies by values counts as a cause: lines that merely add or rearrange are told with the line before.
    """
    lines: dict[tuple[str, int], list[Stage]] = {}
    latest: tuple[str, int] | None = None
    for stage in stages:
        span = stage.operation.span if stage.operation is not None else None
        if span is not None and not stage.adds:
            latest = span.file, span.line
        if latest is not None:
            lines.setdefault(latest, []).append(stage)
    for group in lines.values():
        causes = [stage for stage in group if stage.operation is not None and not stage.adds]
        if causes:
            yield _strongest(causes), sum(stage.growth for stage in group), group


def _strongest(stages: list[Stage]) -> Operation:
    """Of the operations on a line, the one that changes a gradient most, in all of its turns there."""
    growths: dict[Span | None, float] = {}
    latest: dict[Span | None, Operation] = {}
    for stage in stages:
        if stage.operation is not None:
            growths[stage.operation.span] = growths.get(stage.operation.span, 0.0) + stage.growth
            latest[stage.operation.span] = stage.operation
    return latest[max(growths, key=lambda span: abs(growths[span]))]
